"""Files of JSON objects, one a line, to which a run adds while it works, and which tell the next run what was done."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.errors import OutputError


class JsonLines:
    """One such file, which need not exist yet. Safe to use from several threads.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def read(self) -> list[dict[str, Any]]:
        """The objects in order; none where there is no file. What is no object is left out, as a line that an interrupt
        or a full disk cut off.

        Raises:
            OutputError: the file cannot be read, or could not be added to.
        """
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            with self.path.open("a"):
                pass
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be read and written: {error.strerror or error}") from error
        entries: list[dict[str, Any]] = []
        for line in lines:
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    entries.append(entry)
        return entries

    def restart(self, entry: Mapping[str, Any]) -> None:
        """Replace the file, if there is one, by a single object.

        Raises:
            OutputError: the file cannot be written.
        """
        with replacing(self.path) as temporary:
            temporary.write_text(f"{json.dumps(entry)}\n", encoding="utf-8")

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an object. It is in the file, whatever becomes of this process, when this returns.

        Raises:
            OutputError: the file cannot be written.
        """
        # The line before may have been cut off, and must not spoil this one.
        line = f"\n{json.dumps(entry)}\n"
        try:
            with self._lock, self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error
