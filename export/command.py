"""`dmfnet-export`: weights to an engine file, verified."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from dmfnet_fast.commands.shared import command
from dmfnet_fast.engines import SHIPPED_WEIGHTS
from dmfnet_fast.errors import OutputError, require
from dmfnet_fast.files import replacing
from dmfnet_fast.fusion_file import seal


@contextmanager
def _step(name: str) -> Iterator[None]:
    """Tell on standard error what is done, and then how long it took."""
    click.echo(f"{name} ...", err=True, nl=False)
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        click.echo(err=True)
        raise
    click.echo(f" {time.perf_counter() - started:.1f} s", err=True)


@command()
@click.argument("weights", type=click.Path(path_type=Path), required=False)
@click.option("--target", type=click.Choice(["onnx"]), required=True, help="onnx: for CPUs, by OpenVINO.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write; by default the weights' name, here."
)
@click.version_option(package_name="dmfnet-fast")
def main(weights: Path | None, target: str, output: Path | None) -> None:
    """Export WEIGHTS (.safetensors; the shipped tiny ones if not given) as an engine file for Fuser.

    The exported network is run beside the weights in float32 PyTorch, on OpenVINO and, if it is installed, on
    ONNX Runtime, and written only if the pictures agree. It takes any batch and any size that is a multiple of 16,
    at least 64; its engine chooses the precision when it opens the file.
    """
    weights = weights or SHIPPED_WEIGHTS
    output = output or Path(f"{weights.stem}.{target}")
    if output.suffix.lower() != f".{target}":
        raise OutputError(f"{output}: name an .{target} file")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; name a file to write")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: cannot be written: the folder {output.parent} does not exist")

    # Imported late, so that --help and a wrong name need no torch.
    for module in ("torch", "safetensors", "onnx", "onnxscript", "openvino"):
        require(module, extra="export")
    from dmfnet_fast.model import load_model
    from dmfnet_fast.model.weights import read_metadata
    from export.graph import add_metadata, to_onnx
    from export.verify import check, verify

    with _step(f"reading {weights}"):
        model = load_model(weights)
    with _step("exporting"):
        proto = to_onnx(model, read_metadata(weights).get("sha256"))
    with _step("verifying"):
        results = list(verify(model, proto.SerializeToString()))
    for parity in results:
        click.echo(f"  {parity}", err=True)
    for parity in results:
        check(parity)
    add_metadata(proto, {"parity": json.dumps([parity.to_dict() for parity in results])})
    with replacing(output) as temporary:
        temporary.write_bytes(seal(proto.SerializeToString()))
    click.echo(output)
