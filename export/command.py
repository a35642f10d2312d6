"""`dmfnet-export`: weights to an engine file, verified."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.onnx_metadata import seal
from dmfnet_fast.artifacts.parity import check
from dmfnet_fast.commands.shared import command
from dmfnet_fast.errors import DMFNetError, OutputError
from export.onnx.source import NOTHING_WRITTEN, Graph, from_onnx, from_weights
from export.request import DEFAULT_GPUS, Precision, Request, RequestError, check_machine, make_request
from export.tensorrt.builder import require_builder
from export.verify import has_onnx_runtime, on_onnx_runtime

EPILOG = """\b
dmfnet-export                                  the shipped weights, for this machine's GPU, 256x256
dmfnet-export W.safetensors --min 128 --opt 256 --max 512 --batch 4
dmfnet-export W.safetensors --target tensorrt-rtx --gpu sm_86,sm_89
dmfnet-export W.safetensors --target onnx -o network.onnx
dmfnet-export W.safetensors --target onnx --int8 --calibrate DATA -o network-int8.onnx
dmfnet-export W.safetensors --target onnx --fp16 -o graph.onnx && scp graph.onnx jetson:
dmfnet-export graph.onnx                       on the Jetson: no torch, no triton
"""


def _tell(text: str) -> None:
    click.echo(f"  {text}", err=True)


@contextmanager
def _step(name: str) -> Iterator[Callable[[float], None]]:
    """Tell on standard error what is done, what part of it, in tenths, and then how long it took."""
    click.echo(f"{name} ...", err=True, nl=False)
    started = time.perf_counter()
    shown = 0

    def report(part: float) -> None:
        nonlocal shown
        if int(part * 10) > shown and part < 1:
            shown = int(part * 10)
            click.echo(f" {10 * shown}%", err=True, nl=False)

    try:
        yield report
    except BaseException:
        click.echo(err=True)
        raise
    click.echo(f" {time.perf_counter() - started:.1f} s", err=True)


@contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """A folder beside `output` for what is unfinished; made at once, so that what cannot be written is found early.

    Raises:
        OutputError: nothing can be written there, now or later.
    """
    made = not output.parent.exists()  # a model repository may be new
    try:
        output.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".dmfnet-export-", dir=output.parent) as folder:
            yield Path(folder)
    except OSError as error:
        if isinstance(error, DMFNetError):
            raise
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        if made:
            with suppress(OSError):
                output.parent.rmdir()  # unless something is in it


def _graph(request: Request) -> Graph:
    if request.source.suffix.lower() == ".onnx":
        return from_onnx(request.source, request.precision, _step)
    for_engine = request.target != "onnx" or request.precision not in ("float32", "int8")
    return from_weights(
        request.source, request.precision, for_engine, request.profile, _step, request.calibrate, request.every_block
    )


def _write_onnx(request: Request, graph: Graph, folder: Path) -> None:
    path = folder / request.output.name
    path.write_bytes(seal(graph.content))
    path.replace(request.output)


def _write_engine(request: Request, graph: Graph, folder: Path) -> None:
    from export.tensorrt.engine_file import make_engine, publish

    made = make_engine(request, graph, folder, _step, _tell)
    publish(folder, request.output)
    _tell(f"{made.layers['count']} layers, of which {made.layers['reformats']} only rearrange")


def _write_repository(request: Request, graph: Graph, folder: Path) -> None:
    from export.triton_server import configuration, of_one_size, write_repository

    assert request.profile is not None
    interface = interface_of(graph.config)
    served = of_one_size(graph.content, interface, request.profile)
    known = [r for r in graph.references if r.shape[1:] == request.profile.opt[1:]]
    about = {"weights": graph.weights, "precision": graph.precision}
    if known and has_onnx_runtime() and request.precision != "bfloat16":
        with _step("checking what is served with ONNX Runtime") as report:
            parity = on_onnx_runtime(served, request.precision, known, report)
        check(parity, NOTHING_WRITTEN)
        about["parity"] = str(parity)
    if request.target == "tensorrt":
        from export.tensorrt.engine_file import build_for_server

        about["tensorrt"] = require_builder("tensorrt").__version__
        served = build_for_server(request, served, _step, _tell)
    name = request.output.name
    config = configuration(name, request.target, request.precision, interface, request.profile, about)
    write_repository(folder / name, request.target, served, config)
    (folder / name).replace(request.output)


def _terminate(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _terminable() -> Iterator[None]:
    """On SIGTERM leave as on an error, with what is unfinished removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _precision(chosen: tuple[str, ...]) -> Precision | None:
    if len(set(chosen)) > 1:
        raise RequestError("--fp16, --bf16, --fp32, --int8: give one of them")
    names: dict[str, Precision] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "int8": "int8"}
    return names[chosen[0]] if chosen else None


@command(epilog=EPILOG)
@click.argument("weights", type=click.Path(path_type=Path), required=False)
@click.option(
    "--target",
    type=click.Choice(["tensorrt", "tensorrt-rtx", "onnx"]),
    default="tensorrt",
    help="tensorrt: for the NVIDIA GPU of this machine, Jetson or datacenter; tensorrt-rtx: for RTX GPUs, built on any "
    "machine; onnx: for CPUs, or with --fp16 or --bf16 a graph to build engines from elsewhere.",
)
@click.option("--fp16", "precision", flag_value="fp16", multiple=True, help="float16, the default for engines.")
@click.option("--bf16", "precision", flag_value="bf16", multiple=True, help="bfloat16.")
@click.option("--fp32", "precision", flag_value="fp32", multiple=True, help="float32, the default for onnx.")
@click.option("--int8", "precision", flag_value="int8", multiple=True, help="For onnx: convolutions in 8 bits.")
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="For --int8: take ranges from DIR/train/{CT,PET,SPECT}-MRI, as training reads it; by default from phantoms.",
)
@click.option("--every-block", is_flag=True, help="For --int8: the first and last too; faster, less exact.")
@click.option("--size", help="The one size of an engine, HEIGHTxWIDTH or one number; 256 by default.")
@click.option("--min", "least", metavar="HxW", help="Smallest size of an engine that takes several.")
@click.option("--opt", "best", metavar="HxW", help="Its fastest size; by default the largest.")
@click.option("--max", "most", metavar="HxW", help="Its largest size.")
@click.option("--batch", type=click.IntRange(1, 64), help="Most pairs that an engine takes at once; 1 by default.")
@click.option("--gpu", metavar="sm_89,...", help=f"For tensorrt-rtx; by default {','.join(DEFAULT_GPUS)}.")
@click.option("--plugins/--no-plugins", help="Put our Triton kernels into a TensorRT engine (10.9 and later).")
@click.option("--timing-cache", type=click.Path(path_type=Path), help="TensorRT's measurements: read and written.")
@click.option(
    "--triton-server",
    "server",
    type=click.Path(path_type=Path),
    help="Write a model for NVIDIA Triton Inference Server into this repository; -o names it.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; by default named as WEIGHTS.")
@click.option("--dry-run", is_flag=True, help="Print what would be done.")
@click.option("--inspect", "inspected", type=click.Path(path_type=Path), help="Print what a file of ours contains.")
@click.version_option(package_name="dmfnet-fast")
def main(
    weights: Path | None,
    precision: tuple[str, ...],
    timing_cache: Path | None,
    server: Path | None,
    output: Path | None,
    dry_run: bool,
    inspected: Path | None,
    **options: Any,
) -> None:
    """Export WEIGHTS: a shipped network by its name (turbo if none is given), .safetensors, or a graph made by this.

    The result is compared with the network as trained, in float32, and appears only if they agree.
    """
    if inspected is not None:
        from export.inspection import describe

        click.echo("\n".join(describe(inspected)))
        return
    request = make_request(
        weights, precision=_precision(precision), timing_cache=timing_cache, server=server, output=output, **options
    )
    if dry_run:
        click.echo(request)
        return
    check_machine(request)
    write = _write_onnx if request.target == "onnx" else _write_engine
    if request.server is not None:
        write = _write_repository
    with _terminable(), _workplace(request.output) as folder:
        graph = _graph(request)
        for parity in graph.parity:
            _tell(str(parity))
        _tell(f"largest activation {graph.largest_activation:.0f} (float16 holds up to 65504)")
        write(request, graph, folder)
    click.echo(request.output)
