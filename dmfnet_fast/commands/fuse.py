"""`dmfnet-fuse`: fuses two images or two folders of images, and hands volumes and tables to other modules."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from dmfnet_fast import __version__
from dmfnet_fast.artifacts.atomic import make_folder
from dmfnet_fast.commands.engine_options import EngineOptions, machine_options
from dmfnet_fast.commands.fuse_images import WORKERS, fuse_images, run_job
from dmfnet_fast.commands.fuse_on_ray import LOCAL
from dmfnet_fast.commands.fuse_options import (
    DEFAULT_SUFFIX,
    MONTAGES,
    are_volumes,
    check_options,
    report_of,
    volume_request,
)
from dmfnet_fast.commands.fuse_table import fuse_table
from dmfnet_fast.commands.fuse_volumes import fuse_volumes
from dmfnet_fast.commands.fuse_worker import TableRequest
from dmfnet_fast.commands.journal import Job, PairJournal
from dmfnet_fast.commands.shared import FAILED, PATH, command, progress, resumable
from dmfnet_fast.engines import DEFAULT
from dmfnet_fast.engines.kinds import files_and_libraries
from dmfnet_fast.errors import DMFNetError, ImageError, OutputError, warn
from dmfnet_fast.fuser import Fuser, Range
from dmfnet_fast.images.color import DEFAULT_RULES, check_range
from dmfnet_fast.images.formats import WRITERS, name_in_folder, suffixes
from dmfnet_fast.images.io import check_suffix
from dmfnet_fast.images.pairing import pair_folders
from dmfnet_fast.volumes.display import COLORMAPS, DEFAULT_COLORMAP
from dmfnet_fast.volumes.showing import GRAY


@dataclass(frozen=True)
class Request:
    """The arguments and options for images."""

    a: Path
    b: Path
    output: Path
    engine: EngineOptions
    range_a: Range | None
    range_b: Range | None
    suffix: str
    with_montage: bool
    overwrite: bool


def _same_file(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)


def _single_job(a: Path, b: Path, output: Path, with_montage: bool, suffix: str) -> list[Job]:
    if output.is_dir():
        output = output / f"{name_in_folder(b) or b.stem}.{suffix}"
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
    _check_names_folder(output, "two folders are fused into a folder")
    found = pair_folders(a, b)
    if not found.pairs:
        warn(f"{a}, {b}: no two images have one name; rename them, or name the pairs in a table: --pairs")
    jobs = []
    for name, file_a, file_b in found.pairs:
        side_by_side = str(output / MONTAGES / f"{name}.png") if with_montage else None
        jobs.append(Job(str(file_a), str(file_b), str(output / f"{name}.{suffix}"), side_by_side))
    for name, problem in found.problems:
        jobs.append(Job(str(a / name), str(b / name), None, status="failed", error=problem))
    return jobs, found.ignored


def _check_names_folder(output: Path, rule: str) -> None:
    """Raise an OutputError if a folder that is to be made has the suffix of an image or of a slice."""
    if output.suffix.lower() in (*suffixes(WRITERS), ".dcm") and not output.exists():
        raise OutputError(f"{output}: names a file; {rule}")


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


def _work(
    jobs: list[Job],
    shown: Iterable[Job],
    fuser: Fuser,
    range_a: Range | None,
    range_b: Range | None,
    journal: PairJournal | None,
) -> None:
    """Fuse the pending jobs, several at a time, and advance `shown`, which iterates over all jobs, as they finish."""

    def work(job: Job) -> None:
        run_job(job, lambda: fuse_images(job, fuser, range_a, range_b, journal))

    pool = ThreadPoolExecutor(WORKERS)
    try:
        running = [pool.submit(work, job) if job.status == "pending" else None for job in jobs]
        for future, _ in zip(running, shown, strict=True):
            if future is not None:
                future.result()
    finally:
        # After an interrupt, jobs in progress are finished and recorded; the others are not started.
        pool.shutdown(cancel_futures=True)


@command()
@click.argument("a", type=PATH, required=False)
@click.argument("b", type=PATH, required=False)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help=f"Image to write ({' '.join(writer.suffixes[0] for writer in WRITERS)}), or a folder; for volumes a folder, "
    "or NIfTI to write (.nii.gz .nii).",
)
@click.option(
    "--engine",
    default=DEFAULT,
    help=f"Name of a shipped network, or a file: {files_and_libraries()}.",
)
@machine_options
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
@click.option(
    "--range-a",
    type=(float, float),
    metavar="LO HI",
    help="Values of black and white in A, if it is a volume or an image of 16 bits or floats.",
)
@click.option("--range-b", type=(float, float), metavar="LO HI", help="The same for B.")
@click.option(
    "--format",
    "chosen_format",
    type=click.Choice([*(suffix[1:] for suffix in suffixes(WRITERS)), "dicom", "nifti"]),
    help="Format of the files in an output folder: png by default; for volumes dicom, nifti or png, by default as the "
    "volume whose grid is taken.",
)
@click.option(
    "--montage", "with_montage", is_flag=True, help="Images: also write a PNG of A, B and the result side by side."
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="In a folder: fuse all pairs again, and replace existing files. Volumes: replace the result of other inputs "
    "or settings.",
)
@click.option("--series-a", metavar="UID", help="Volumes: which series of A to take, if it holds several.")
@click.option("--series-b", metavar="UID", help="The same for B.")
@click.option(
    "--modality-b",
    type=click.Choice(["CT", "PET", "SPECT", "MR"], case_sensitive=False),
    help="Volumes: what B shows, for NIfTI, which does not say.",
)
@click.option("--grid", type=click.Choice(["a", "b"]), help="Volumes: whose voxels and slices to take; a by default.")
@click.option("--register", is_flag=True, help="Volumes: move B onto A rigidly, instead of trusting the headers.")
@click.option("--force-patient", is_flag=True, help="Volumes: fuse although the headers name different patients.")
@click.option(
    "--colormap",
    type=click.Choice([*COLORMAPS, GRAY]),
    help=f"Volumes: colors of a gray B; {DEFAULT_COLORMAP} by default for PET and SPECT, {GRAY} for others.",
)
@click.option("--label", metavar="TEXT", help="Volumes as DICOM: text to draw into a corner of every slice.")
@click.option(
    "--pairs",
    type=PATH,
    metavar="TABLE",
    help="Instead of A and B: a CSV table of pairs, with columns a, b and, if need be, name, series_a, series_b and "
    "modality_b.",
)
@click.option(
    "--ray",
    is_flag=False,
    flag_value=LOCAL,
    metavar="[ADDRESS]",
    help="With --pairs: on the Ray cluster at this address, or on one that is started on this machine.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a machine-readable report; everything else goes to standard error."
)
@click.version_option(package_name="dmfnet-fast")
def main(as_json: bool, pairs: Path | None, ray: str | None, **given: Any) -> None:
    """Fuse A, an MRI, with B, a CT, PET or SPECT.

    A and B are images of one slice and size, or two folders whose images are paired by name. The result shows the
    structure of both in B's colors and bit depth. In folders, results that this command would reproduce are kept, so
    that an interrupted run resumes where it stopped. A pair that fails does not stop the others; the exit code is
    then 2.

    Or they are volumes: DICOM files, folders with DICOM files in them or below, DICOMDIRs, and NIfTI files (.nii,
    .nii.gz). These are aligned by their headers and fused slice by slice on A's grid, with a report and a page to look
    at. A folder is a volume if it has a DICOM file in it or below, unless it directly holds more images than DICOM
    files: then it is a folder of images.

    Or a table names the pairs, images and volumes alike: --pairs TABLE -o FOLDER. Each result has a name in that
    folder, and results are kept as in folders.

    Not a medical device.
    """
    engine = EngineOptions(**{option.name: given.pop(option.name) for option in fields(EngineOptions)})
    volumes, ignored = False, 0
    try:
        _check_inputs(given, pairs, ray)
        if pairs is not None:
            output = given.pop("output")
            with resumable(given["overwrite"]):
                report = fuse_table(TableRequest(pairs, output, engine, given), ray)
            _say_images(report, as_json, True, output, 0)
            return
        volumes = are_volumes(given["a"], given["b"])
        check_options(given, volumes)
        if volumes:
            _check_names_folder(given["output"], "volumes are fused into a folder, or into one .nii.gz or .nii file")
            with resumable(given["overwrite"]):
                report = fuse_volumes(volume_request(engine, given))
        else:
            report, ignored = _run(_image_request(engine, given))
    except (DMFNetError, OSError) as error:
        if as_json:
            click.echo(json.dumps(report_of([], error=str(error)), indent=2))
        raise
    if volumes:
        _say_volumes(report, as_json)
    else:
        _say_images(report, as_json, given["a"].is_dir(), given["output"], ignored)


def _check_inputs(given: dict[str, Any], pairs: Path | None, ray: str | None) -> None:
    """Raise an ImageError unless either A and B or a table are given, with nothing that belongs to the other."""
    if pairs is None and None in (given["a"], given["b"]):
        raise ImageError("give A and B, two images, folders or volumes; or --pairs with a table of them")
    if pairs is None and ray is not None:
        raise ImageError("--ray: is for a table of pairs, --pairs")
    if pairs is not None:
        if given["a"] is not None:
            raise ImageError("--pairs: names A and B; leave them out as arguments")
        for name in ("series_a", "series_b"):
            if given[name] is not None:
                raise ImageError(f"--{name.replace('_', '-')}: is a column {name} of the table with --pairs")


def _image_request(engine: EngineOptions, given: dict[str, Any]) -> Request:
    suffix = given["chosen_format"] or DEFAULT_SUFFIX
    names = ("a", "b", "output", "range_a", "range_b", "with_montage", "overwrite")
    return Request(engine=engine, suffix=suffix, **{name: given[name] for name in names})


def _say_volumes(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    first, *others = map(Path, report["files"])
    slices = report["slices"]
    click.echo(f"{first.parent if others else first}: {slices['fused']} fused, {slices['already_there']} already there")
    click.echo(report["page"])


def _say_images(report: dict[str, Any], as_json: bool, folders: bool, output: Path, ignored: int) -> None:
    for pair in report["pairs"]:
        if pair["status"] == "failed":
            click.echo(f"error: {pair['error']}", err=True)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif folders:
        others = f", {ignored} other files ignored" if ignored else ""
        counts = f"{report['fused']} fused, {report['skipped']} already there, {report['failed']} failed"
        click.echo(f"{output}: {counts}{others}")
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
    with request.engine.open() as fuser:
        if not folders:
            _work(jobs, jobs, fuser, request.range_a, request.range_b, None)
            return report_of(jobs, engine=fuser.info), ignored
        make_folder(output / MONTAGES if with_montage else output)
        ranges = {"range_a": request.range_a, "range_b": request.range_b}
        settings = {"version": __version__, **fuser.info, "seed": request.engine.seed, **request.engine.rules, **ranges}
        journal = PairJournal(output, settings)
        for job in jobs:
            if job.status == "pending":
                journal.check(job, request.overwrite)
        with resumable(request.overwrite), progress(jobs, "fusing") as shown:
            _work(jobs, shown, fuser, request.range_a, request.range_b, journal)
        return report_of(jobs, engine=fuser.info), ignored


if __name__ == "__main__":
    main()
