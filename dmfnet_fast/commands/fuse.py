"""`dmfnet-fuse`: two pictures, or two folders of them, from the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from dmfnet_fast import __version__
from dmfnet_fast.commands.shared import FAILED, command, progress
from dmfnet_fast.errors import DMFNetError, OutputError, PictureError
from dmfnet_fast.files import make_folder
from dmfnet_fast.fuser import Fuser, Range, Source
from dmfnet_fast.montage import montage
from dmfnet_fast.pairs import pair_folders
from dmfnet_fast.pictures import WRITABLE, check_suffix, read_picture, write_picture

MONTAGES = "montages"


@dataclass
class Job:
    """One pair: what to read and write, and what came of it."""

    a: str
    b: str
    output: str | None
    montage: str | None = None
    status: str = "pending"  # then fused, skipped or failed
    error: str | None = None
    seconds: float | None = None
    size: tuple[int, int] | None = None  # width, height


def _same_file(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)


def _single_job(a: Path, b: Path, output: Path, with_montage: bool, suffix: str) -> list[Job]:
    if output.is_dir():
        output = output / f"{b.stem}.{suffix}"
    check_suffix(output)
    if _same_file(output, a) or _same_file(output, b):
        raise OutputError(f"{output}: is one of the inputs; choose another name")
    side_by_side = output.with_name(f"{output.stem}-montage.png") if with_montage else None
    return [Job(str(a), str(b), str(output), str(side_by_side) if side_by_side else None)]


def _folder_jobs(a: Path, b: Path, output: Path, with_montage: bool, suffix: str) -> tuple[list[Job], int]:
    if _same_file(output, a) or _same_file(output, b):
        raise OutputError(f"{output}: is one of the input folders; choose another one")
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; two folders are fused into a folder")
    found = pair_folders(a, b)
    make_folder(output / MONTAGES if with_montage else output)
    jobs = []
    for name, file_a, file_b in found.pairs:
        side_by_side = str(output / MONTAGES / f"{name}.png") if with_montage else None
        jobs.append(Job(str(file_a), str(file_b), str(output / f"{name}.{suffix}"), side_by_side))
    for name, problem in found.problems:
        jobs.append(Job(str(a / name), str(b / name), None, status="failed", error=problem))
    return jobs, found.ignored


def _is_done(job: Job) -> bool:
    """Whether all results are there and newer than what they are made from."""
    results = [Path(path) for path in (job.output, job.montage) if path is not None]
    try:
        newest_input = max(Path(path).stat().st_mtime for path in (job.a, job.b))
        return all(path.stat().st_mtime >= newest_input for path in results)
    except FileNotFoundError:
        return False


def _do(job: Job, fuser: Fuser, ranges: tuple[Range | None, Range | None] | None) -> None:
    assert job.output is not None
    started = time.perf_counter()
    try:
        a, b = read_picture(job.a), read_picture(job.b)
        fused = fuser.fuse(Source(a, job.a), Source(b, job.b), range=ranges)
        write_picture(job.output, fused)
        if job.montage is not None:
            write_picture(job.montage, montage([[a, b, fused]], ["a", "b", "fused"]))
    except DMFNetError as error:
        job.status, job.error = "failed", str(error)
        return
    job.status, job.size = "fused", (b.shape[1], b.shape[0])
    job.seconds = round(time.perf_counter() - started, 4)


def _work(jobs: Iterable[Job], fuser: Fuser, ranges: tuple[Range | None, Range | None] | None) -> None:
    for job in jobs:
        if job.status == "pending":
            _do(job, fuser, ranges)


def _report(fuser: Fuser, jobs: list[Job]) -> dict[str, Any]:
    counts = {status: sum(job.status == status for job in jobs) for status in ("fused", "skipped", "failed")}
    return {"version": __version__, "engine": fuser.info, **counts, "pairs": [asdict(job) for job in jobs]}


@command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Picture to write (.png .tif .bmp .jpg), or a folder.",
)
@click.option(
    "--engine",
    type=click.Path(path_type=Path),
    help="Weights file (.safetensors); the shipped tiny weights if not given.",
)
@click.option("--device", default="cpu", help="cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--seed", default=0, type=click.IntRange(0, 2**64 - 1), help="Seed of the fixed noise.")
@click.option(
    "--range-a", type=(float, float), metavar="LO HI", help="Values that mean black and white in a 16-bit or float A."
)
@click.option("--range-b", type=(float, float), metavar="LO HI", help="The same for B.")
@click.option(
    "--format",
    "suffix",
    default="png",
    show_default=True,
    type=click.Choice([s[1:] for s in WRITABLE]),
    help="Of the files in an output folder.",
)
@click.option("--montage", "with_montage", is_flag=True, help="Also write a PNG of A, B and the result side by side.")
@click.option("--overwrite", is_flag=True, help="In a folder: redo results that are there and newer than their inputs.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a machine-readable report; everything else goes to standard error."
)
@click.version_option(package_name="dmfnet-fast")
def main(
    a: Path,
    b: Path,
    output: Path,
    engine: Path | None,
    device: str,
    threads: int | None,
    seed: int,
    range_a: Range | None,
    range_b: Range | None,
    suffix: str,
    with_montage: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Fuse A, an MRI, with B, a CT, PET or SPECT of the same slice and size.

    A and B are two pictures, or two folders whose pictures are paired by name. The result shows the
    structure of both in B's colours and depth. In folders, results that exist are kept (an interrupted run
    goes on where it stopped), a pair that fails does not stop the others, and the exit code is then 2.

    Not a medical device.
    """  # fmt: skip
    if a.exists() and b.exists() and a.is_dir() != b.is_dir():
        raise PictureError(f"{a}, {b}: one is a folder and one a file; give two files or two folders")
    folders = a.is_dir() and b.is_dir()
    if folders:
        jobs, ignored = _folder_jobs(a, b, output, with_montage, suffix)
        if not overwrite:
            for job in jobs:
                if job.status == "pending" and _is_done(job):
                    job.status = "skipped"
    else:
        jobs, ignored = _single_job(a, b, output, with_montage, suffix), 0

    ranges = (range_a, range_b) if range_a or range_b else None
    with Fuser(engine, seed, device=device, threads=threads) as fuser:
        if folders:
            with progress(jobs, "fusing") as shown:
                _work(shown, fuser, ranges)
        else:
            _work(jobs, fuser, ranges)
        report = _report(fuser, jobs)

    for job in jobs:
        if job.status == "failed":
            click.echo(f"error: {job.error}", err=True)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif folders:
        others = f", {ignored} other files ignored" if ignored else ""
        click.echo(
            f"{output}: {report['fused']} fused, {report['skipped']} already there, {report['failed']} failed{others}"
        )
    else:
        for path in (jobs[0].output, jobs[0].montage):
            if path is not None and jobs[0].status == "fused":
                click.echo(path)
    if report["failed"]:
        raise SystemExit(FAILED)
