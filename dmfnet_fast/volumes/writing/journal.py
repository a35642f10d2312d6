"""The record of a run in its output folder: which slices it has written, so that it can go on after an interrupt."""

from __future__ import annotations

import hashlib
import uuid
from datetime import datetime
from pathlib import Path

from dmfnet_fast.artifacts.json_lines import JsonLines
from dmfnet_fast.errors import OutputError

# Begins the name of a part that is a slice within a file.
_SLICE = "slice:"


def slice_part(index: int) -> str:
    """The name of a slice that is no file of its own."""
    return f"{_SLICE}{index}"


def sha256(content: bytes) -> str:
    """SHA-256 of some bytes, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


class SliceJournal:
    """Which parts of one result a run has put in place: a file of lines of JSON.

    The first is about the run; then follow name and hash of each part, noted before it is put in place. So every part
    that is there is known: one with its hash is finished, another one is not this run's.

    Attributes:
        path: the file.
        run: the run's identity (`provenance.run_identity`), None where the file does not exist yet.
        name: a UUID drawn for this run when it began.
        started: when it began.

    Raises:
        OutputError: the file cannot be read or written, or does not begin with a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run: str | None = None
        self.name = uuid.uuid4()
        self.started = datetime.now().replace(microsecond=0)
        self._file = JsonLines(path)
        self._parts: dict[str, set[str]] = {}
        if not path.exists():
            return
        entries = self._file.read()
        try:
            start = entries[0]
            self.run, self.name = str(start["run"]), uuid.UUID(start["name"])
            self.started = datetime.fromisoformat(start["started"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise OutputError(
                f"{path}: is damaged, so it is unknown what lies beside it; choose another folder, or delete it with "
                "the results beside it"
            ) from error
        for entry in entries[1:]:
            # Others are of a run that wrote here at the same time, with other dates in its files.
            if entry.get("name") == str(self.name) and {"part", "sha256"} <= entry.keys():
                self._parts.setdefault(str(entry["part"]), set()).add(str(entry["sha256"]))

    def begin(self, run: str) -> None:
        """Record a new run.

        Raises:
            OutputError: the file cannot be written.
        """
        self._file.restart({"run": run, "name": str(self.name), "started": self.started.isoformat()})
        self.run = run

    def add(self, part: str, digest: str) -> None:
        """Record a part that is about to be put in place. Safe to call from several threads.

        Raises:
            OutputError: the file cannot be written.
        """
        self._parts.setdefault(part, set()).add(digest)
        self._file.append({"name": str(self.name), "part": part, "sha256": digest})

    def holds(self, part: str, digest: str) -> bool:
        """Whether a part was recorded with this hash."""
        return digest in self._parts.get(part, set())

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the parts that are files."""
        return tuple(part for part in self._parts if not part.startswith(_SLICE) and Path(part).name == part)

    def remove(self) -> None:
        """Delete the file, if it exists."""
        self.path.unlink(missing_ok=True)
