"""The worker of `dmfnet-fuse --pairs`, which fuses pairs of a table with one engine."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmfnet_fast import __version__
from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.commands.fuse_images import WORKERS, fuse_images, run_job
from dmfnet_fast.commands.fuse_options import (
    DEFAULT_SUFFIX,
    MONTAGES,
    are_volumes,
    check_options,
    volume_request,
)
from dmfnet_fast.commands.fuse_volumes import fuse_volumes
from dmfnet_fast.commands.journal import Job, PairJournal
from dmfnet_fast.errors import ImageError
from dmfnet_fast.images.io import check_suffix

# A pair with which this many processes of one run have ended is given up.
MOST_ATTEMPTS = 3


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


def _silent(items: Iterable[Any], _label: str, _length: int | None = None) -> AbstractContextManager[Iterable[Any]]:
    """In place of `progress`: of many volumes at a time, the table's progress is shown."""
    return nullcontext(items)


class Worker:
    """Fuses pairs of a table with one engine, and writes and records the results.

    Args:
        request: what to fuse, and how.
        part: the worker's part of the journal; see `PairJournal`.
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
        self._journal = PairJournal(request.output, settings, part)
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
        suspect = any(self._lost(pair) for pair in pairs)
        pool = ThreadPoolExecutor(1 if suspect else WORKERS)
        try:
            for future in as_completed([pool.submit(self._fuse, pair) for pair in pairs]):
                yield future.result()
        finally:
            # After an interrupt, pairs in progress are finished and recorded; the others are not started.
            pool.shutdown(cancel_futures=True)

    def _lost(self, pair: Pair) -> int:
        return self._journal.lost(pair.name, self._run) if self._run else 0

    def _fuse(self, pair: Pair) -> tuple[str, Job]:
        job = Job(pair.a, pair.b, None)
        run_job(job, lambda: self._guarded(pair, job))
        return pair.name, job

    def _guarded(self, pair: Pair, job: Job) -> None:
        """Fuse a pair, unless it is known to end the process."""
        if not self._run:
            self._do(pair, job)
            return
        if self._lost(pair) >= MOST_ATTEMPTS:
            raise ImageError(f"{pair.a} with {pair.b}: ended the process that fused them {MOST_ATTEMPTS} times")
        self._journal.mark("begun", pair.name, self._run)
        try:
            self._do(pair, job)
        finally:
            self._journal.mark("ended", pair.name, self._run)

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
        again = overwrite and not self._lost(pair)
        self._journal.check(job, again, pair.stated, resumable=volumes or overwrite)
        if job.status != "pending":
            return
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
