"""`dmfnet-fuse`: fuses two images, or two folders of images."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from dmfnet_fast import __version__
from dmfnet_fast.artifacts.atomic import make_folder
from dmfnet_fast.commands.journal import Job, Journal
from dmfnet_fast.commands.shared import FAILED, command, progress
from dmfnet_fast.engines import DEFAULT
from dmfnet_fast.engines.kinds import default_devices, files_and_libraries
from dmfnet_fast.errors import DMFNetError, ImageError, OutputError
from dmfnet_fast.fuser import Fuser, Range, Source
from dmfnet_fast.images.color import DEFAULT_RULES, check_range, range_of
from dmfnet_fast.images.formats import WRITERS, suffixes
from dmfnet_fast.images.io import check_holds, check_suffix, load_image, to_8_bit, write_image
from dmfnet_fast.images.montage import montage
from dmfnet_fast.images.pairing import pair_folders
from dmfnet_fast.precision import PRECISION_CHOICES, PrecisionChoice

MONTAGES = "montages"
WORKERS = 3  # one decodes, one computes (calls to the engine are serialized), one encodes


@dataclass(frozen=True)
class Request:
    """The arguments and options of the command."""

    a: Path
    b: Path
    output: Path
    engine: str
    device: str | None
    precision: PrecisionChoice
    threads: int | None
    seed: int
    keep_chroma: float
    allow_invention: bool
    range_a: Range | None
    range_b: Range | None
    suffix: str
    with_montage: bool
    overwrite: bool


def _same_file(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)


def _single_job(a: Path, b: Path, output: Path, with_montage: bool, suffix: str) -> list[Job]:
    if output.is_dir():
        output = output / f"{b.stem}.{suffix}"
    elif not output.suffix:
        raise OutputError(f"{output}: unknown image format '', and no such folder: name a .png file, or create it")
    check_suffix(output)
    side_by_side = output.with_name(f"{output.stem}-montage.png") if with_montage else None
    return [Job(str(a), str(b), str(output), str(side_by_side) if side_by_side else None)]


def _folder_jobs(a: Path, b: Path, output: Path, with_montage: bool, suffix: str) -> tuple[list[Job], int]:
    if _same_file(output, a) or _same_file(output, b):
        raise OutputError(f"{output}: is one of the input folders; choose another one")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; two folders are fused into a folder")
    found = pair_folders(a, b)
    jobs = []
    for name, file_a, file_b in found.pairs:
        side_by_side = str(output / MONTAGES / f"{name}.png") if with_montage else None
        jobs.append(Job(str(file_a), str(file_b), str(output / f"{name}.{suffix}"), side_by_side))
    for name, problem in found.problems:
        jobs.append(Job(str(a / name), str(b / name), None, status="failed", error=problem))
    return jobs, found.ignored


def _check_inputs_survive(jobs: list[Job]) -> None:
    """Raise an OutputError if a result would replace an input."""
    states = [Path(path).stat() for job in jobs for path in (job.a, job.b) if Path(path).exists()]
    inputs = {(state.st_dev, state.st_ino) for state in states}
    for job in jobs:
        for path in (job.output, job.montage):
            if path is not None and Path(path).exists():
                state = Path(path).stat()
                if (state.st_dev, state.st_ino) in inputs:
                    raise OutputError(f"{path}: is one of the inputs; choose another name")


def _fuse(job: Job, fuser: Fuser, range_a: Range | None, range_b: Range | None) -> None:
    assert job.output is not None
    a, b = load_image(job.a), load_image(job.b)
    check_holds(Path(job.output), b.pixels)
    values_a, values_b = range_of(a, range_a), range_of(b, range_b)
    fused = fuser.fuse(Source(a.pixels, a.name, values=values_a), Source(b.pixels, b.name, values=values_b))
    write_image(job.output, fused, values_b)
    if job.montage is not None:
        row = [to_8_bit(a.pixels, values_a), to_8_bit(b.pixels, values_b), to_8_bit(fused, values_b)]
        write_image(job.montage, montage([row], ["a", "b", "fused"]))
    job.size = (b.pixels.shape[1], b.pixels.shape[0])


def _work(
    jobs: list[Job],
    shown: Iterable[Job],
    fuser: Fuser,
    range_a: Range | None,
    range_b: Range | None,
    journal: Journal | None,
) -> None:
    """Fuse the pending jobs, several at a time, and advance `shown`, which iterates over all jobs, as they finish."""

    def work(job: Job) -> None:
        started = time.perf_counter()
        try:
            _fuse(job, fuser, range_a, range_b)
            if journal is not None:
                journal.add(job)
        except DMFNetError as error:
            job.status, job.error = "failed", str(error)
        except Exception as error:
            # No failure of one pair may stop the others.
            job.status, job.error = "failed", f"{job.a} with {job.b}: {type(error).__name__}: {error}"
        else:
            job.status, job.seconds = "fused", round(time.perf_counter() - started, 4)

    pool = ThreadPoolExecutor(WORKERS)
    try:
        running = [pool.submit(work, job) if job.status == "pending" else None for job in jobs]
        for future, _ in zip(running, shown, strict=True):
            if future is not None:
                future.result()
    finally:
        # After an interrupt, jobs in progress are finished and recorded; the others are not started.
        pool.shutdown(cancel_futures=True)


def _report(jobs: list[Job], **more: Any) -> dict[str, Any]:
    counts = {status: sum(job.status == status for job in jobs) for status in ("fused", "skipped", "failed")}
    return {"version": __version__, **more, **counts, "pairs": [asdict(job) for job in jobs]}


@command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help=f"Image to write ({' '.join(writer.suffixes[0] for writer in WRITERS)}), or a folder.",
)
@click.option(
    "--engine",
    default=DEFAULT,
    help=f"Name of a shipped network, or a file: {files_and_libraries()}.",
)
@click.option("--device", help=f"cpu, cuda or cuda:N; by default {default_devices()}.")
@click.option(
    "--precision",
    default="auto",
    type=click.Choice(PRECISION_CHOICES),
    help="Precision of the arithmetic; auto is the fastest.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option(
    "--seed", default=0, type=click.IntRange(0, 2**64 - 1), help="Seed of the noise, for networks that take noise."
)
@click.option(
    "--keep-chroma",
    default=DEFAULT_RULES.kept_chroma,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Least fraction of B's chroma that every pixel keeps; it limits the brightness of saturated colors.",
)
@click.option(
    "--allow-invention",
    is_flag=True,
    help="Allow pixels to be darker or brighter than all of A and B within one pixel.",
)
@click.option("--range-a", type=(float, float), metavar="LO HI", help="Values of black and white in 16-bit or float A.")
@click.option("--range-b", type=(float, float), metavar="LO HI", help="The same for B.")
@click.option(
    "--format",
    "suffix",
    default="png",
    show_default=True,
    type=click.Choice([suffix[1:] for suffix in suffixes(WRITERS)]),
    help="Format of the files in an output folder.",
)
@click.option("--montage", "with_montage", is_flag=True, help="Also write a PNG of A, B and the result side by side.")
@click.option("--overwrite", is_flag=True, help="In a folder: fuse all pairs again, and replace existing files.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a machine-readable report; everything else goes to standard error."
)
@click.version_option(package_name="dmfnet-fast")
def main(as_json: bool, **given: Any) -> None:
    """Fuse A, an MRI, with B, a CT, PET or SPECT of the same slice and size.

    A and B are two images, or two folders whose images are paired by name. The result shows the structure of both in
    B's colors and bit depth. In folders, results that this command would reproduce are kept, so that an interrupted run
    resumes where it stopped. A pair that fails does not stop the others; the exit code is then 2.

    Not a medical device.
    """
    request = Request(**given)
    try:
        report, ignored = _run(request)
    except (DMFNetError, OSError) as error:
        if as_json:
            click.echo(json.dumps(_report([], error=str(error)), indent=2))
        raise
    for pair in report["pairs"]:
        if pair["status"] == "failed":
            click.echo(f"error: {pair['error']}", err=True)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif request.a.is_dir():
        others = f", {ignored} other files ignored" if ignored else ""
        counts = f"{report['fused']} fused, {report['skipped']} already there, {report['failed']} failed"
        click.echo(f"{request.output}: {counts}{others}")
    else:
        (pair,) = report["pairs"]
        for path in (pair["output"], pair["montage"]):
            if path is not None and pair["status"] == "fused":
                click.echo(path)
    if report["failed"]:
        raise SystemExit(FAILED)


def _run(request: Request) -> tuple[dict[str, Any], int]:
    """Fuse all pairs; the report, and the number of ignored files."""
    a, b, output, with_montage, suffix = request.a, request.b, request.output, request.with_montage, request.suffix
    for path in (a, b):
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder")
    if a.is_dir() != b.is_dir():
        raise ImageError(f"{a}, {b}: one is a folder and one a file; give two files or two folders")
    folders = a.is_dir()
    if folders:
        jobs, ignored = _folder_jobs(a, b, output, with_montage, suffix)
    else:
        jobs, ignored = _single_job(a, b, output, with_montage, suffix), 0
    _check_inputs_survive(jobs)
    for stated, name in ((request.range_a, "--range-a"), (request.range_b, "--range-b")):
        if stated is not None:
            check_range(stated, name)
    rules: dict[str, Any] = {"keep_chroma": request.keep_chroma, "allow_invention": request.allow_invention}
    with Fuser(
        request.engine,
        request.seed,
        device=request.device,
        precision=request.precision,
        threads=request.threads,
        **rules,
    ) as fuser:
        if not folders:
            _work(jobs, jobs, fuser, request.range_a, request.range_b, None)
            return _report(jobs, engine=fuser.info), ignored
        make_folder(output / MONTAGES if with_montage else output)
        ranges = {"range_a": request.range_a, "range_b": request.range_b}
        settings = {"version": __version__, **fuser.info, "seed": request.seed, **rules, **ranges}
        journal = Journal(output, settings)
        for job in jobs:
            if job.status == "pending":
                journal.check(job, request.overwrite)
        with progress(jobs, "fusing") as shown:
            _work(jobs, shown, fuser, request.range_a, request.range_b, journal)
        return _report(jobs, engine=fuser.info), ignored
