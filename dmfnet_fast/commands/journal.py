"""The journal of `dmfnet-fuse` in an output folder: what it made, and from what."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dmfnet_fast.artifacts.json_lines import JsonLines
from dmfnet_fast.artifacts.manifest import file_sha256

JOURNAL = ".dmfnet-fuse.jsonl"


@dataclass
class Job:
    """One pair: the files to read and write, and the outcome. Volumes may be folders, and their results are."""

    a: str
    b: str
    output: str | None
    montage: str | None = None
    status: str = "pending"  # later fused, skipped or failed
    error: str | None = None
    seconds: float | None = None  # from reading to writing, including the wait for other pairs
    size: tuple[int, int] | None = None  # width, height

    @property
    def results(self) -> list[Path]:
        """The files or folders that the pair makes."""
        return [Path(path) for path in (self.output, self.montage) if path is not None]


def _hash(path: Path) -> str:
    """The hash of a file's content, or of the names and contents of all files in a folder and below.

    A DICOMDIR stands for its folder, whose files it lists.
    """
    path = path.parent if path.name.upper() == "DICOMDIR" else path
    if not path.is_dir():
        return file_sha256(path)
    content = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
    return content.hexdigest()


class PairJournal:
    """What every result in a folder was made from, one line of JSON per pair: its inputs and settings.

    Inputs and results are identified by hashes of their contents: a result is kept only if the same command would
    reproduce it, and a file that this command did not make is never replaced unless the user asks for it.

    Args:
        folder: the output folder.
        settings: what else a result depends on.
        part: processes that write results at the same time, maybe on several machines, each add to a file of their own,
            which this names. All files are read.

    Raises:
        OutputError: a file cannot be read or written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], part: str = "") -> None:
        first = Path(JOURNAL)
        self._file = JsonLines(folder / (f"{first.stem}-{part}{first.suffix}" if part else JOURNAL))
        self._settings = json.loads(json.dumps(settings))
        self._made: dict[str, list[dict[str, Any]]] = {}
        self._open: Counter[tuple[str, str]] = Counter()
        for path in sorted({self._file.path, folder / JOURNAL, *folder.glob(f"{first.stem}-*{first.suffix}")}):
            for entry in JsonLines(path).read():
                # A line of something else.
                with suppress(KeyError, TypeError):
                    if "run" in entry:
                        self._open[entry["run"], entry["pair"]] += 1 if entry["event"] == "begun" else -1
                    else:
                        self._made.setdefault(entry["output"], []).append(entry)

    def _entry(self, job: Job, results: list[Path], more: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "output": Path(str(job.output)).name,
            "inputs": [_hash(Path(job.a)), _hash(Path(job.b))],
            "results": [_hash(path) for path in results],
            "settings": {**self._settings, **more},
        }

    def check(
        self, job: Job, overwrite: bool, more: Mapping[str, Any] | None = None, *, resumable: bool = False
    ) -> None:
        """Mark a job as skipped if its results are up to date, or as failed if this command did not make them.

        Args:
            job: the pair.
            overwrite: whether it is to be fused in any case.
            more: settings of this pair alone.
            resumable: whether what is there may be the unfinished result of this pair, which is for others to judge.
        """
        known = self._made.get(Path(str(job.output)).name, [])
        if overwrite:
            return
        if not known and any(path.exists() for path in job.results) and not resumable:
            job.status = "failed"
            job.error = f"{job.output}: already exists and was not made by this command; --overwrite replaces it"
        elif known and all(path.exists() for path in job.results):
            # An input that cannot be read is reported when the job runs.
            with suppress(OSError):
                if self._entry(job, job.results, more or {}) in known:
                    job.status = "skipped"

    def add(self, job: Job, results: list[Path] | None = None, more: Mapping[str, Any] | None = None) -> None:
        """Record a result. Safe to call from several threads.

        Args:
            job: the pair.
            results: where the results are that are about to be put in place; None if they are in place.
            more: settings of this pair alone.

        Raises:
            OutputError: the journal cannot be written.
        """
        self._file.append(self._entry(job, job.results if results is None else results, more or {}))

    def mark(self, event: Literal["begun", "ended"], name: str, run: str) -> None:
        """Record that work on a pair is begun, or has ended in one way or another.

        Args:
            event: which of both.
            name: of the pair.
            run: an identity of the run.
        """
        self._file.append({"event": event, "pair": name, "run": run})

    def lost(self, name: str, run: str) -> int:
        """How often a process of a run ended with a pair, which was begun and has not ended, before this was opened."""
        return self._open[run, name]
