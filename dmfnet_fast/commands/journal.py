"""The journal of `dmfnet-fuse` in an output folder: what it made, and from what."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmfnet_fast.errors import OutputError

JOURNAL = ".dmfnet-fuse.jsonl"


@dataclass
class Job:
    """One pair: the files to read and write, and the outcome."""

    a: str
    b: str
    output: str | None
    montage: str | None = None
    status: str = "pending"  # later fused, skipped or failed
    error: str | None = None
    seconds: float | None = None  # from reading to writing, including the wait for other pairs
    size: tuple[int, int] | None = None  # width, height


def _hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class Journal:
    """A record of the inputs and settings of every result in a folder, one line of JSON per result.

    Inputs and results are identified by hashes of their contents: a result is kept only if the same command would
    reproduce it, and a file that this command did not make is never replaced unless the user asks for it.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._path = folder / JOURNAL
        self._lock = threading.Lock()
        self._settings = json.loads(json.dumps(settings))
        self._made: dict[str, dict[str, Any]] = {}
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
            with self._path.open("a"):
                pass
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be read and written: {error.strerror or error}") from error
        for line in lines:
            # The last line of an interrupted run may be incomplete.
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._made[entry["output"]] = entry

    def _entry(self, job: Job) -> dict[str, Any]:
        results = [path for path in (job.output, job.montage) if path is not None]
        return {
            "output": Path(str(job.output)).name,
            "inputs": [_hash(job.a), _hash(job.b)],
            "results": [_hash(path) for path in results],
            "settings": self._settings,
        }

    def check(self, job: Job, overwrite: bool) -> None:
        """Mark a job as skipped if its results are up to date, or as failed if this command did not make them."""
        results = [Path(path) for path in (job.output, job.montage) if path is not None]
        known = self._made.get(Path(str(job.output)).name)
        if overwrite:
            return
        if known is None and any(path.exists() for path in results):
            job.status = "failed"
            job.error = f"{job.output}: already exists and was not made by this command; --overwrite replaces it"
        elif known is not None and all(path.exists() for path in results):
            # An input that cannot be read is reported when the job runs.
            with suppress(OSError):
                if known == self._entry(job):
                    job.status = "skipped"

    def add(self, job: Job) -> None:
        """Record a result. Safe to call from several threads."""
        entry = json.dumps(self._entry(job)) + "\n"
        try:
            with self._lock, self._path.open("a", encoding="utf-8") as file:
                file.write(entry)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error.strerror or error}") from error
