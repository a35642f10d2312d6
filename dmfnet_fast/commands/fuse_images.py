"""The part of `dmfnet-fuse` that fuses one pair of image files."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from dmfnet_fast.commands.journal import Job, PairJournal
from dmfnet_fast.errors import DMFNetError
from dmfnet_fast.fuser import Fuser, Range, Source
from dmfnet_fast.images.color import range_of
from dmfnet_fast.images.io import check_holds, load_image, to_8_bit, writing_image
from dmfnet_fast.images.montage import montage

WORKERS = 3  # one decodes, one computes (calls to the engine are serialized), one encodes


def fuse_images(
    job: Job, fuser: Fuser, range_a: Range | None, range_b: Range | None, journal: PairJournal | None = None
) -> None:
    """Fuse two files and write the results, which are recorded before they are put in place.

    Raises:
        DMFNetError: a file cannot be read, fused or written.
    """
    assert job.output is not None
    a, b = load_image(job.a), load_image(job.b)
    check_holds(Path(job.output), b.pixels)
    values_a, values_b = range_of(a, range_a), range_of(b, range_b)
    fused = fuser.fuse(Source(a.pixels, a.name, values=values_a), Source(b.pixels, b.name, values=values_b))
    with ExitStack() as files:
        written = [files.enter_context(writing_image(job.output, fused, values_b))]
        if job.montage is not None:
            row = [to_8_bit(a.pixels, values_a), to_8_bit(b.pixels, values_b), to_8_bit(fused, values_b)]
            side_by_side = montage([row], ["a", "b", "fused"])
            written.append(files.enter_context(writing_image(job.montage, side_by_side, values_b)))
        if journal is not None:
            journal.add(job, written)
    job.size = (b.pixels.shape[1], b.pixels.shape[0])


def run_job(job: Job, work: Callable[[], None]) -> None:
    """Do the work of a pair, and set its outcome; no failure of one pair may stop the others."""
    started = time.perf_counter()
    try:
        work()
    except DMFNetError as error:
        job.status, job.error = "failed", str(error)
    except Exception as error:
        job.status, job.error = "failed", f"{job.a} with {job.b}: {type(error).__name__}: {error}"
    else:
        if job.status == "pending":
            job.status, job.seconds = "fused", round(time.perf_counter() - started, 4)
