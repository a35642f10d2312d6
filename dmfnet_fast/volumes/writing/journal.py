"""The record of a run in its output folder: which slices it has written, so that it can go on after an interrupt."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dmfnet_fast.errors import OutputError

# Begins the name of a part that is a slice within a file.
_SLICE = "slice:"


def slice_part(index: int) -> str:
    """The name of a slice that is no file of its own."""
    return f"{_SLICE}{index}"


def sha256(content: bytes) -> str:
    """SHA-256 of some bytes, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


class Journal:
    """A file of JSON lines: first the run, then the name and hash of each part, noted before the part is put in place.

    So every part that is there is known: one with its hash is finished, another one is not this run's.

    Attributes:
        path: the file.
        run: the run's identity (`provenance.run_identity`), None where the file does not exist yet.
        name: a UUID drawn for this run when it began.
        started: when it began.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run: str | None = None
        self.name = uuid.uuid4()
        self.started = datetime.now().replace(microsecond=0)
        self._lock = threading.Lock()
        self._parts: dict[str, set[str]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is damaged"
            raise OutputError(f"{path}: cannot be read: {reason}; choose another folder") from error
        try:
            start = json.loads(lines[0])
            self.run, self.name = str(start["run"]), uuid.UUID(start["name"])
            self.started = datetime.fromisoformat(start["started"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise OutputError(
                f"{path}: is damaged, so it is unknown what lies beside it; choose another folder, or delete it with "
                "the results beside it"
            ) from error
        for line in lines[1:]:
            # The last line of an interrupted run may be incomplete.
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._parts.setdefault(str(entry["part"]), set()).add(str(entry["sha256"]))

    def begin(self, run: str) -> None:
        """Record a new run; parts of an earlier one are forgotten.

        Raises:
            OutputError: the file cannot be written.
        """
        self.run, self._parts = run, {}
        line = {"run": run, "name": str(self.name), "started": self.started.isoformat()}
        self._write("x", line)

    def add(self, part: str, digest: str) -> None:
        """Record a part that is about to be put in place. Safe to call from several threads.

        Raises:
            OutputError: the file cannot be written.
        """
        self._parts.setdefault(part, set()).add(digest)
        self._write("a", {"part": part, "sha256": digest})

    def _write(self, mode: str, entry: dict[str, Any]) -> None:
        try:
            with self._lock, self.path.open(mode, encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error

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
