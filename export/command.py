"""`dmfnet-export`: exports weights to a verified engine file."""

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

from dmfnet_fast.commands.shared import PATH, command
from dmfnet_fast.engines import DEFAULT
from dmfnet_fast.errors import DMFNetError, OutputError
from dmfnet_fast.precision import Precision
from export.onnx.source import with_pixels
from export.options import (
    BACKENDS,
    DEFAULT_GPUS,
    PRECISION_FLAGS,
    chosen_precision,
    default_backends,
    make_request,
    precision_help,
    takers_of,
)
from export.sources import source_of
from export.targets import TARGETS

EPILOG = """\b
dmfnet-export                                  the shipped weights, for this machine's GPU, 256x256
dmfnet-export W.safetensors --min 128 --opt 256 --max 512 --batch 4
dmfnet-export W.safetensors --target tensorrt-rtx --gpu sm_86,sm_89
dmfnet-export W.safetensors --target onnx -o network.onnx
dmfnet-export W.safetensors --target onnx --int8 --calibrate DATA -o network-int8.onnx
dmfnet-export W.safetensors --target onnx --fp16 -o graph.onnx && scp graph.onnx jetson:
dmfnet-export graph.onnx                       on the Jetson: no torch, no triton
dmfnet-export nano --target web -o page
"""


HELP = f"""Export WEIGHTS: a shipped network by its name ({DEFAULT} if none is given), .safetensors, or a graph made by
this.

The result is compared with the network as trained, in float32, and appears only if they agree.
"""


def _tell(text: str) -> None:
    click.echo(f"  {text}", err=True)


@contextmanager
def _step(name: str) -> Iterator[Callable[[float], None]]:
    """Print the name of a step, its progress in steps of 10% and finally its duration to standard error."""
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
    """Create a folder for unfinished files beside `output`, and remove it on exit.

    Creating it before any work is done reports an unwritable output early.

    Raises:
        OutputError: writing there fails, now or later.
    """
    made = not output.parent.exists()  # a model repository may not exist yet
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
                output.parent.rmdir()  # fails, as it should, if the export put something there


def _terminate(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _terminable() -> Iterator[None]:
    """On SIGTERM, exit as after an error, so that unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _precision_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each precision; all of them set the parameter `precision`."""
    for precision, flag in reversed(PRECISION_FLAGS.items()):
        help_ = precision_help(precision)
        function = click.option(flag.flag, "precision", flag_value=precision, multiple=True, help=help_)(function)
    return function


@command(help=HELP, epilog=EPILOG)
@click.argument("weights", type=PATH, required=False)
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    default=next(iter(TARGETS)),
    help=f"{'; '.join(f'{target.name}: {target.words}' for target in TARGETS.values())}.",
)
@_precision_options
@click.option(
    "--calibrate",
    type=PATH,
    metavar="DIR",
    help="For --int8: take ranges from DIR/train/{CT,PET,SPECT}-MRI, as training reads it; by default from phantoms.",
)
@click.option("--every-block", is_flag=True, help="For --int8: the first and last too; faster, less exact.")
@click.option("--single-file", is_flag=True, help="For --target web: one HTML file, which runs from a disk.")
@click.option("--size", help="The one size of an engine, HEIGHTxWIDTH or one number; 256 by default.")
@click.option("--min", "least", metavar="HxW", help="Smallest size of an engine that takes several.")
@click.option("--opt", "best", metavar="HxW", help="Its fastest size; by default the largest.")
@click.option("--max", "most", metavar="HxW", help="Its largest size.")
@click.option("--batch", type=click.IntRange(1, 64), help="Most pairs that an engine takes at once; 1 by default.")
@click.option("--gpu", metavar="sm_89,...", help=f"For {takers_of('gpu')}; by default {','.join(DEFAULT_GPUS)}.")
@click.option("--plugins/--no-plugins", help="Put our Triton kernels into a TensorRT engine (10.9 and later).")
@click.option(
    "--pixels", is_flag=True, help="Take and give 8-bit images, with the rules inside; then nothing else is taken."
)
@click.option("--timing-cache", type=PATH, help="TensorRT's measurements: read and written.")
@click.option(
    "--workspace",
    type=click.IntRange(1),
    metavar="MIB",
    help="Most scratch memory for a layer of a TensorRT engine; by default a quarter of the memory that the GPU shares "
    "with the system, or all of its own.",
)
@click.option("--no-check", is_flag=True, help="Keep an engine that differs from the weights, for diagnosis.")
@click.option(
    "--triton-server",
    "server",
    type=PATH,
    help="Write a model for NVIDIA Triton Inference Server into this repository; -o names it.",
)
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    help=f"The server's backend that runs the model; by default {default_backends()}.",
)
@click.option("-o", "--output", type=PATH, help="File or folder to write; by default named as WEIGHTS.")
@click.option("--dry-run", is_flag=True, help="Print what would be done.")
@click.option("--inspect", "inspected", type=PATH, help="Print what a file of ours contains.")
@click.version_option(package_name="dmfnet-fast")
def main(
    weights: Path | None,
    precision: tuple[Precision, ...],
    timing_cache: Path | None,
    server: Path | None,
    output: Path | None,
    dry_run: bool,
    inspected: Path | None,
    **options: Any,
) -> None:
    """Run `dmfnet-export`; its help text is HELP."""
    if inspected is not None:
        from export.inspection import describe

        click.echo("\n".join(describe(inspected)))
        return
    request = make_request(
        weights,
        precision=chosen_precision(precision),
        timing_cache=timing_cache,
        server=server,
        output=output,
        **options,
    )
    if dry_run:
        click.echo(request)
        return
    request.target.check_machine(request)
    write = (request.served or request.target).write
    with _terminable(), _workplace(request.output) as folder:
        graph = source_of(request.source).read(request, _step)
        if request.pixels and not graph.pixels:
            graph = with_pixels(graph, request.precision not in request.target.cpu_precisions, _step)
        for parity in graph.parity:
            _tell(str(parity))
        _tell(f"largest activation {graph.largest_activation:.0f} (float16 holds up to 65504)")
        write(request, graph, folder, _step, _tell)
    click.echo(request.output)
