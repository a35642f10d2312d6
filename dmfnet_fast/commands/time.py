"""`dmfnet-time`: how long an engine takes on this machine."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from dmfnet_fast import __version__
from dmfnet_fast.commands.engine_options import machine_options
from dmfnet_fast.commands.shared import command, progress
from dmfnet_fast.engines import Engine
from dmfnet_fast.engines.kinds import device_kind
from dmfnet_fast.errors import DMFNetError
from dmfnet_fast.fuser import Fuser
from dmfnet_fast.images.padding import SMALLEST
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.precision import PrecisionChoice
from dmfnet_fast.wording import aligned

DEFAULT_SIZE = "256x256"
LARGEST = 4096  # rows and columns: a head is drawn in several arrays of doubles
SECONDS, WARM_UP = 3.0, 0.5
FEWEST = 3  # calls, if each takes longer than all should
PERCENTILES = (50, 95, 99)


class _Watched(Engine):
    """An engine, with a clock.

    Attributes:
        seconds: how long all calls took together.
        took_pixels: whether the last call was for pixels, so that conversions and rules are part of its time.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.largest_batch, self.interface = engine.largest_batch, engine.interface
        self.takes_pixels = engine.takes_pixels
        self.seconds = 0.0
        self.took_pixels = False

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        started = time.perf_counter()
        fused = self._engine.run(inputs)
        self.seconds += time.perf_counter() - started
        self.took_pixels = False
        return fused

    def fuse_pixels(self, a: NDArray[np.uint8], b: NDArray[np.uint8], rules: Rules, seed: int) -> NDArray[np.uint8]:
        started = time.perf_counter()
        fused = self._engine.fuse_pixels(a, b, rules, seed)
        self.seconds += time.perf_counter() - started
        self.took_pixels = True
        return fused

    def close(self) -> None:
        self._engine.close()

    @property
    def info(self) -> dict[str, str]:
        return self._engine.info


class WatchedFuser(Fuser):
    """A `Fuser` that knows how long its engine takes.

    Attributes:
        watch: the engine.
    """

    def __init__(self, engine: str, device: str | None, precision: PrecisionChoice, threads: int | None) -> None:
        super().__init__(engine, device=device, precision=precision, threads=threads)
        self.watch = _Watched(self._engine)
        self._engine = self.watch


@dataclass(frozen=True)
class Timing:
    """How long calls of `Fuser.fuse` took, with images of one size. Times are in milliseconds.

    Attributes:
        height, width: size of the images in pixels.
        batch: pairs in each call.
        color: whether b is in color.
        calls: how many calls were timed, after the first one and the warm-up.
        first_ms: the first call, which includes what the engine compiles for the size.
        p50_ms, p95_ms, p99_ms: median and percentiles of a whole call.
        images_per_second: in all timed calls together.
        engine_ms: median of what the engine takes of a call.
        engine_does: "network", or "pixels" if the engine also converts the images and applies the rules.
    """

    height: int
    width: int
    batch: int
    color: bool
    calls: int
    first_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    images_per_second: float
    engine_ms: float
    engine_does: str


def _size(text: str) -> tuple[int, int]:
    """The height and width that "HxW" names."""
    found = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text)
    if found is None:
        raise DMFNetError(f"--size {text}: give height and width in pixels, such as {DEFAULT_SIZE}")
    height, width = int(found[1]), int(found[2])
    if min(height, width) < SMALLEST or max(height, width) > LARGEST:
        raise DMFNetError(f"--size {text}: height and width must be from {SMALLEST} to {LARGEST}")
    return height, width


def _images(height: int, width: int, batch: int, color: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The MRI and the PET, or CT, of a phantom head; for several pairs, stacks of them."""
    side = max(height, width)
    head = make_phantom(0, side)
    top, left = (side - height) // 2, (side - width) // 2
    inside = slice(top, top + height), slice(left, left + width)
    a, b = (np.ascontiguousarray(image[inside]) for image in (head.mri, head.pet if color else head.ct))
    return (a, b) if batch == 1 else (np.stack([a] * batch), np.stack([b] * batch))


def _for(seconds: float) -> Iterator[None]:
    """At least FEWEST times, and on until so many seconds have passed."""
    started, done = time.perf_counter(), 0
    while done < FEWEST or time.perf_counter() - started < seconds:
        yield
        done += 1


def measure(fuser: WatchedFuser, height: int, width: int, batch: int, color: bool, calls: int | None) -> Timing:
    """Time calls of `Fuser.fuse` with 8-bit arrays of a phantom head.

    Args:
        fuser: the open engine.
        height, width: size of the images in pixels, at least SMALLEST.
        batch: pairs in each call.
        color: whether b is a PET image in color, or else a gray CT.
        calls: how many calls to time; None times calls for about SECONDS.

    Raises:
        ImageError, EngineError, OutOfMemoryError: as `Fuser.fuse`.
    """
    a, b = _images(height, width, batch, color)

    def once() -> tuple[float, float]:
        before, started = fuser.watch.seconds, time.perf_counter()
        fuser.fuse(a, b)
        return time.perf_counter() - started, fuser.watch.seconds - before

    label = f"{height}x{width}"
    with progress([None], f"{label}, first call") as one:
        for _ in one:
            first, _ = once()
    for _ in _for(WARM_UP) if calls is None else repeat(None, min(calls, FEWEST)):
        once()
    if calls is None:
        click.echo(f"{label}, timing: about {SECONDS:g} s", err=True)
        times = [once() for _ in _for(SECONDS)]
    else:
        with progress(range(calls), f"{label}, timing", calls) as numbers:
            times = [once() for _ in numbers]
    whole, engine = np.array(times).T * 1e3
    p50, p95, p99 = (float(value) for value in np.percentile(whole, PERCENTILES))
    return Timing(
        height=height,
        width=width,
        batch=batch,
        color=color,
        calls=len(times),
        first_ms=first * 1e3,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        images_per_second=batch * len(times) / (whole.sum() / 1e3),
        engine_ms=float(np.median(engine)),
        engine_does="pixels" if fuser.watch.took_pixels else "network",
    )


def peak_resident() -> int | None:
    """The largest resident memory of this process so far in bytes; None where the system does not tell."""
    with suppress(OSError):
        # getrusage of Linux would count the process that started this one.
        found = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
        if found is not None:
            return int(found[1]) * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def peak_on_gpu(device: str) -> int | None:
    """The most memory in bytes that PyTorch has held on a GPU so far; None if the engine does not run on it there."""
    torch: Any = sys.modules.get("torch")
    if torch is None or device_kind(device) == "cpu" or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_reserved(device))


def _table(timings: list[Timing]) -> Iterator[str]:
    """Lines of a table with a row for each size, and what its last column means."""
    heads = ("size", "batch", "calls", "first, ms", "median, ms", "p95, ms", "p99, ms", "images/s", "engine, ms")
    rows: list[tuple[str, ...]] = [heads]
    for timing in timings:
        whole = (timing.first_ms, timing.p50_ms, timing.p95_ms, timing.p99_ms, timing.images_per_second)
        numbers = [f"{value:.0f}" if value >= 1000 else f"{value:.3g}" for value in (*whole, timing.engine_ms)]
        rows.append((f"{timing.height}x{timing.width}", str(timing.batch), str(timing.calls), *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
    yield ""
    meanings = {
        "network": "the network alone",
        "pixels": "from 8-bit images to 8-bit images, with the rules; the network alone cannot be told from it",
    }
    yield from (f"engine: {meanings[does]}" for does in dict.fromkeys(timing.engine_does for timing in timings))


@command()
@click.argument("engine", metavar="ENGINE_OR_WEIGHTS")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    default=(DEFAULT_SIZE,),
    metavar="HxW",
    help="Height and width of the images. May be repeated.",
)
@machine_options
@click.option("--calls", type=click.IntRange(1), help=f"How many calls to time; by default about {SECONDS:g} seconds.")
@click.option("--batch", default=1, type=click.IntRange(1), help="Pairs in each call.")
@click.option("--color/--gray", default=True, help="Whether B is in color, as a PET, or gray, as a CT.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a machine-readable report; everything else goes to standard error."
)
@click.version_option(package_name="dmfnet-fast")
def main(
    engine: str,
    sizes: tuple[str, ...],
    device: str | None,
    precision: PrecisionChoice,
    threads: int | None,
    calls: int | None,
    batch: int,
    color: bool,
    as_json: bool,
) -> None:
    """Time an engine on this machine: fuse a made-up head, whose 8-bit images are in memory, again and again.

    ENGINE_OR_WEIGHTS is what dmfnet-fuse takes as --engine. A call is all that Fuser.fuse does, from arrays to an
    array. The first call of a size also compiles what the engine needs for it; some calls then warm up, and the
    others are timed.
    """
    asked = [_size(size) for size in sizes]
    started = time.perf_counter()
    with closing(WatchedFuser(engine, device, precision, threads)) as fuser:
        opening = time.perf_counter() - started
        timings = [measure(fuser, height, width, batch, color, calls) for height, width in dict.fromkeys(asked)]
        info = fuser.info
        process, gpu = peak_resident(), peak_on_gpu(info["device"])
    if as_json:
        report = {
            "made_by": "dmfnet-time",
            "version": __version__,
            "engine": info,
            "opening_ms": opening * 1e3,
            "timings": [asdict(timing) for timing in timings],
            "peak_resident_bytes": process,
            "peak_gpu_bytes": gpu,
        }
        click.echo(json.dumps(report, indent=2))
        return
    memory = {"most memory": process, "most GPU memory, of PyTorch": gpu}
    about = {
        "dmfnet-fast": __version__,
        **info,
        "opened in": f"{opening * 1e3:.0f} ms",
        **{name: f"{size / 2**20:.0f} MiB" for name, size in memory.items() if size is not None},
    }
    click.echo("\n".join([*_table(timings), *aligned(about)]))


if __name__ == "__main__":
    main()
