"""`dmfnet-fuse --pairs`: a table of pairs, of files, volumes or studies, on this machine or on a Ray cluster."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmfnet_fast.artifacts.atomic import make_folder, remove_temporaries, replacing
from dmfnet_fast.commands.fuse_on_ray import fuse_on_ray
from dmfnet_fast.commands.fuse_options import DEFAULT_SUFFIX, MONTAGES, report_of
from dmfnet_fast.commands.fuse_worker import Pair, TableRequest, Worker
from dmfnet_fast.commands.journal import Job
from dmfnet_fast.commands.shared import progress
from dmfnet_fast.errors import ImageError, OutputError
from dmfnet_fast.images.color import check_range
from dmfnet_fast.images.formats import name_in_folder
from dmfnet_fast.volumes.nifti import is_nifti, stem
from dmfnet_fast.wording import alternatives

REPORT = "dmfnet-fuse-report.csv"
_NEEDED = ("a", "b")
_MORE = ("name", "series_a", "series_b", "modality_b")


def read_table(path: Path, suffix: str = DEFAULT_SUFFIX) -> list[Pair]:
    """Read a table of pairs: CSV in UTF-8 with a header.

    The columns `a` and `b` are paths, relative to the table's folder; `name`, `series_a`, `series_b` and `modality_b`
    may be there too. Without a name, a result is named as B is.

    Args:
        path: the table.
        suffix: that images get behind their names, without the dot.

    Raises:
        ImageError: the table cannot be read, has other columns, no rows, or rows that lack something or whose results
            would have one name.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, strict=True)
            columns = rows.fieldnames or ()
            pairs = [_pair(path, number, row) for number, row in enumerate(_checked(path, columns, rows), 2)]
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ImageError(f"{path}: is no table: {error}; give CSV in UTF-8 with a header") from error
    if not pairs:
        raise ImageError(f"{path}: has no rows; give one pair in each")
    _check_names(path, pairs, suffix)
    return pairs


def _check_names(path: Path, pairs: list[Pair], suffix: str) -> None:
    """Raise an ImageError if two results would have one name, or a volume's folder that of an image's file.

    Which of them are images is only known when they are opened, so a name may not be another one with the suffix.
    """
    rows: dict[str, tuple[int, str]] = {}
    for number, pair in enumerate(pairs, 2):
        # As on file systems that do not tell upper from lower case.
        name = pair.name.casefold()
        if name in rows:
            raise ImageError(
                f"{path}, rows {rows[name][0]} and {number}: both results would be named {pair.name}: give each "
                "another one in a column `name`"
            )
        rows[name] = number, pair.name
    for name, (number, spelled) in rows.items():
        other = rows.get(f"{name}.gz") if is_nifti(Path(name)) else None
        if other is not None:
            first, second = sorted((number, other[0]))
            raise ImageError(
                f"{path}, rows {first} and {second}: {spelled} and {other[1]} would have one report: give either "
                "another name"
            )
    for name, (number, spelled) in rows.items():
        other = rows.get(f"{name}.{suffix}".casefold())
        if other is not None:
            first, second = sorted((number, other[0]))
            raise ImageError(
                f"{path}, rows {first} and {second}: an image named {spelled} becomes {spelled}.{suffix}, which is the "
                "name of the other one: give either another name"
            )


def _checked(path: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The rows, if the columns are known."""
    for column in _NEEDED:
        if column not in columns:
            raise ImageError(f"{path}: has no column `{column}`; the first line names the columns, such as a,b,name")
    for column in columns:
        if column not in (*_NEEDED, *_MORE):
            raise ImageError(f"{path}: has a column `{column}`; known are {alternatives((*_NEEDED, *_MORE), 'and')}")
    return rows


def _pair(path: Path, number: int, row: Mapping[Any, Any]) -> Pair:
    if None in row or None in row.values():
        raise ImageError(f"{path}, row {number}: has more or fewer cells than the first line")
    cells = {str(column): value.strip() for column, value in row.items()}
    for column in _NEEDED:
        if not cells[column]:
            raise ImageError(f"{path}, row {number}: `{column}` is empty")
    a, b = (path.absolute().parent / cells[column] for column in _NEEDED)
    name = cells.get("name") or _stem(b)
    if Path(name).name != name or name.startswith(".") or name in (MONTAGES, REPORT):
        raise ImageError(f"{path}, row {number}: {name!r} is no name for a result: give that of a file, not a path")
    return Pair(str(a), str(b), name, **{column: cells.get(column) or None for column in _MORE[1:]})


def _stem(path: Path) -> str:
    """The name of a file without its suffix, or of a folder."""
    if is_nifti(path):
        return stem(path)
    return path.name if path.is_dir() else name_in_folder(path) or path.stem


def _here(request: TableRequest, pairs: list[Pair]) -> Iterator[tuple[str, Job]]:
    """Fuse a table on this machine."""
    worker = Worker(request)
    try:
        yield from worker.fuse(pairs)
    finally:
        worker.close()


def fuse_table(request: TableRequest, ray: str | None) -> dict[str, Any]:
    """Fuse all pairs of a table and write a report of them into the output folder.

    Args:
        request: what to fuse, and how.
        ray: address of a Ray cluster, `fuse_on_ray.LOCAL` for one on this machine; None fuses without Ray.

    Returns:
        What `--json` prints: counts, and each pair with its outcome, in the table's order.

    Raises:
        ImageError: the table is not usable.
        OutputError: the output folder holds inputs, or cannot be written.
        ClusterError: the cluster cannot be reached, or its workers cannot fuse.
    """
    pairs = read_table(request.pairs, request.given["chosen_format"] or DEFAULT_SUFFIX)
    for stated, name in ((request.given["range_a"], "--range-a"), (request.given["range_b"], "--range-b")):
        if stated is not None:
            check_range(stated, name)
    output = request.output
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; a table is fused into a folder")
    for path in (Path(path) for pair in pairs for path in (pair.a, pair.b)):
        if path.resolve().is_relative_to(output.resolve()):
            raise OutputError(f"{output}: holds {path}, which is an input; choose another folder")
    make_folder(output / MONTAGES if request.given["with_montage"] else output)
    done = _here(request, pairs) if ray is None else fuse_on_ray(request, pairs, ray)
    lost = "was lost with the worker that fused it; run the command again"
    outcomes = {
        pair.name: Job(pair.a, pair.b, None, status="failed", error=f"{pair.a} with {pair.b}: {lost}") for pair in pairs
    }
    with progress(done, "fusing", len(pairs)) as shown:
        outcomes.update(shown)
    for folder in (output, output / MONTAGES):
        remove_temporaries(folder)
    jobs = [outcomes[pair.name] for pair in pairs]
    _write_report(output / REPORT, pairs, jobs)
    return report_of(jobs)


def _write_report(path: Path, pairs: list[Pair], jobs: list[Job]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        columns = ("name", "status", "error", "seconds", "output", "a", "b")
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for pair, job in zip(pairs, jobs, strict=True):
            writer.writerow({"name": pair.name, **asdict(job)})
