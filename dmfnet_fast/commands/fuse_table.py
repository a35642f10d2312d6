"""`dmfnet-fuse --pairs`: a table of pairs, of files, volumes or studies, on this machine or on a Ray cluster."""

from __future__ import annotations

import csv
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmfnet_fast import __version__
from dmfnet_fast.artifacts.atomic import make_folder, remove_temporaries, replacing
from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.commands.fuse_images import WORKERS, fuse_images, run_job
from dmfnet_fast.commands.fuse_options import (
    DEFAULT_SUFFIX,
    MONTAGES,
    are_volumes,
    check_options,
    report_of,
    volume_request,
)
from dmfnet_fast.commands.fuse_volumes import fuse_volumes
from dmfnet_fast.commands.journal import Job, Journal
from dmfnet_fast.commands.shared import progress
from dmfnet_fast.errors import ImageError, OutputError
from dmfnet_fast.images.color import check_range
from dmfnet_fast.images.formats import name_in_folder
from dmfnet_fast.images.io import check_suffix
from dmfnet_fast.volumes.nifti import SUFFIXES, is_nifti
from dmfnet_fast.wording import alternatives

LOCAL = "local"  # the address that stands for a cluster on this machine, which ends with the command
REPORT = "dmfnet-fuse-report.csv"
# A pair that is begun this often in one run ends the process that fuses it.
MOST_ATTEMPTS = 3
_NEEDED = ("a", "b")
_MORE = ("name", "series_a", "series_b", "modality_b")


@dataclass(frozen=True)
class Pair:
    """One row of a table: what to fuse, the result's name, and what is said of volumes."""

    a: str
    b: str
    name: str
    series_a: str | None = None
    series_b: str | None = None
    modality_b: str | None = None

    @property
    def stated(self) -> dict[str, str]:
        """What the row says of volumes, by the names of the command's options."""
        columns = {"series_a": self.series_a, "series_b": self.series_b, "modality_b": self.modality_b}
        return {name: value for name, value in columns.items() if value is not None}


@dataclass(frozen=True)
class TableRequest:
    """The arguments and options for a table.

    Attributes:
        pairs: the table.
        output: folder for the results.
        engine: options of the engine.
        given: all other options of the command, by the names of its parameters, which hold for every pair.
    """

    pairs: Path
    output: Path
    engine: EngineOptions
    given: Mapping[str, Any]


def read_table(path: Path) -> list[Pair]:
    """Read a table of pairs: CSV in UTF-8 with a header.

    The columns `a` and `b` are paths, relative to the table's folder; `name`, `series_a`, `series_b` and `modality_b`
    may be there too. Without a name, a result is named as B is.

    Raises:
        ImageError: the table cannot be read, has other columns, no rows, or rows that lack something or have one name.
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
    # As on file systems that do not tell upper from lower case.
    name, count = Counter(pair.name.casefold() for pair in pairs).most_common(1)[0]
    if count > 1:
        raise ImageError(f"{path}: {count} results would be named {name}: give each another one in a column `name`")
    return pairs


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
        return path.name[: -len(next(suffix for suffix in SUFFIXES[::-1] if path.name.lower().endswith(suffix)))]
    return path.name if path.is_dir() else name_in_folder(path) or path.stem


def _silent(items: Iterable[Any], _label: str, _length: int | None = None) -> AbstractContextManager[Iterable[Any]]:
    """In place of `progress`: of many volumes at a time, the table's progress is shown."""
    return nullcontext(items)


class Worker:
    """Fuses pairs of a table with one engine, and writes and records the results.

    Args:
        request: what to fuse, and how.
        part: the worker's part of the journal; see `Journal`.
        run: an identity of the run, by which a worker that takes the place of one that ended knows what ended it; ""
            where no other takes its place.

    Raises:
        DMFNetError: the engine cannot be opened, or the journal cannot be read.
    """

    def __init__(self, request: TableRequest, part: str = "", run: str = "") -> None:
        self._request, self._run = request, run
        self._fuser = request.engine.open()
        options = {name: value for name, value in request.given.items() if name not in ("overwrite", "as_json")}
        engine = {"seed": request.engine.seed, **request.engine.rules}
        settings = {"version": __version__, **self._fuser.info, **engine, **options}
        self._journal = Journal(request.output, settings, part)
        # Of volumes, one is in memory at a time.
        self._one_volume = threading.Lock()

    @property
    def info(self) -> dict[str, str]:
        """The engine in use; see `Fuser.info`."""
        return self._fuser.info

    def fuse(self, pairs: list[Pair]) -> Iterator[tuple[str, Job]]:
        """Fuse pairs, several at a time; yields the name of each, and its outcome, when it is done, in any order.

        After a worker ended, its pairs are fused one by one, so that the one which ended it is found.
        """
        suspect = any(self._attempts(pair) for pair in pairs)
        pool = ThreadPoolExecutor(1 if suspect else WORKERS)
        try:
            for future in as_completed([pool.submit(self._fuse, pair) for pair in pairs]):
                yield future.result()
        finally:
            # After an interrupt, pairs in progress are finished and recorded; the others are not started.
            pool.shutdown(cancel_futures=True)

    def _attempts(self, pair: Pair) -> int:
        return self._journal.attempts(pair.name, self._run) if self._run else 0

    def _fuse(self, pair: Pair) -> tuple[str, Job]:
        job = Job(pair.a, pair.b, None)
        run_job(job, lambda: self._do(pair, job))
        return pair.name, job

    def _do(self, pair: Pair, job: Job) -> None:
        for path in (pair.a, pair.b):
            if not Path(path).exists():
                raise ImageError(f"{path}: no such file or folder")
        volumes = are_volumes(Path(pair.a), Path(pair.b))
        given = {**self._request.given, **pair.stated}
        check_options(given, volumes)
        folder, overwrite = self._request.output, given["overwrite"]
        if volumes:
            job.output = str(folder / pair.name)
        else:
            job.output = str(folder / f"{pair.name}.{given['chosen_format'] or DEFAULT_SUFFIX}")
            job.montage = str(folder / MONTAGES / f"{pair.name}.png") if given["with_montage"] else None
            check_suffix(Path(job.output))
        # A retry of this run goes on with what it began.
        again = overwrite and not self._attempts(pair)
        self._journal.check(job, again, pair.stated, resumable=volumes or overwrite)
        if job.status != "pending":
            return
        if self._attempts(pair) >= MOST_ATTEMPTS:
            raise ImageError(f"{pair.a} with {pair.b}: ended the process that fused them {MOST_ATTEMPTS} times")
        if self._run:
            self._journal.begin(pair.name, self._run)
        if volumes:
            places = {"a": Path(pair.a), "b": Path(pair.b), "output": Path(job.output)}
            with self._one_volume:
                fuse_volumes(volume_request(self._request.engine, {**given, **places}), self._fuser, _silent)
            self._journal.add(job, more=pair.stated)
        else:
            fuse_images(job, self._fuser, given["range_a"], given["range_b"], self._journal)

    def close(self) -> None:
        """Free the engine."""
        self._fuser.close()


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
        ray: address of a Ray cluster, `LOCAL` for one on this machine; None fuses without Ray.

    Returns:
        What `--json` prints: counts, and each pair with its outcome, in the table's order.

    Raises:
        ImageError: the table is not usable.
        OutputError: the output folder holds inputs, or cannot be written.
        ClusterError: the cluster cannot be reached, or its workers cannot fuse.
    """
    pairs = read_table(request.pairs)
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
    if ray is None:
        done = _here(request, pairs)
    else:
        from dmfnet_fast.commands.fuse_on_ray import fuse_on_ray

        done = fuse_on_ray(request, pairs, ray)
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
