"""Fuses two volumes of one grid slice by slice; reading, computing and writing overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import VolumeError
from dmfnet_fast.volumes.showing import Shown
from dmfnet_fast.volumes.volume import Source, Volume

Image: TypeAlias = NDArray[np.uint8]
# Takes pairs of images of one size, each (rows, columns) or (rows, columns, 3); returns one image, as b's, for each.
Fuse: TypeAlias = Callable[[list[tuple[Image, Image]]], Sequence[Image] | Image]
# Takes the number of a slice, the images a and b, and the fused one, (rows, columns, 3); called from several threads.
Take: TypeAlias = Callable[[int, Image, Image, Image], None]

# One turns values into images, one computes (calls to the engine are serialized), one writes.
WORKERS = 3
# Smaller slices show nothing that a network could fuse; up to 64 they are padded.
SMALLEST = 16


def check_pair(a: Volume, b: Volume) -> None:
    """Raise a VolumeError unless two volumes are on one grid that can be fused."""
    if not same_grid(a, b):
        raise VolumeError(f"{a.source.path} and {b.source.path} are on different grids; align them first")
    _, rows, columns = a.shape
    if min(rows, columns) < SMALLEST:
        raise VolumeError(
            f"{a.source.path}: has slices of {columns}x{rows}; the smallest size is {SMALLEST}x{SMALLEST}: take the "
            "other volume's grid, or resample it"
        )


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same voxels in space, up to rounding."""
    return a.shape == b.shape and bool(np.allclose(a.affine, b.affine, rtol=0, atol=1e-4))


def in_color(image: Image) -> Image:
    """An image as (rows, columns, 3)."""
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def fuse_slices(
    fuse: Fuse, batch: int, a: Shown, b: Shown, take: Take, numbers: Iterable[int] | None = None
) -> Iterator[int]:
    """Fuse slices, several at a time; no more than a few are in memory.

    Args:
        fuse: fuses a batch.
        batch: how many slices to fuse at once. Batches begin at multiples of it, and those with a slice that is asked
            for are computed whole, so that a slice is the same whichever others are asked for.
        a, b: the volumes, on one grid.
        take: gets each slice that is asked for when it is fused.
        numbers: the slices to fuse, from 0; None stands for all.

    Yields:
        The number of each slice after `take` has returned, in any order.
    """
    count = a.volume.shape[0]
    wanted = set(range(count) if numbers is None else numbers)

    def work(start: int) -> list[int]:
        chunk = range(start, min(start + batch, count))
        pairs = [(a.image(number), b.image(number)) for number in chunk]
        fused = fuse(pairs)
        done = [number for number in chunk if number in wanted]
        for number in done:
            take(number, *pairs[number - start], in_color(fused[number - start]))
        return done

    pool = ThreadPoolExecutor(WORKERS)
    try:
        running = [pool.submit(work, start) for start in sorted({number // batch * batch for number in wanted})]
        for future in as_completed(running):
            yield from future.result()
    finally:
        # After an error or an interrupt, slices in progress are finished; the others are not started.
        pool.shutdown(cancel_futures=True)


def fused_volume(values: NDArray[Any], a: Volume, b: Volume) -> Volume:
    """The fused volume.

    Args:
        values: (slices, rows, columns, 3) uint8.
        a, b: its sources, whose grid it has.
    """
    source = Source(f"{a.source.path} with {b.source.path}", "", "fused", "fused", 0)
    return Volume(values, a.affine, "OT", None, a.frame_of_reference, source)
