"""Atomic writing of files: a file is written completely or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmfnet_fast.errors import OutputError


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder and its parents, unless they exist.

    Raises:
        OutputError: the folder cannot be created.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: the folder cannot be created: {error.strerror or error}") from error


_PART = ".part"
_TEMPORARY = re.compile(rf"\.\d+-\d+{re.escape(_PART)}(\.\w+)?")


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder which no other process writes to."""
    for path in folder.glob(f".*{_PART}*"):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The temporary path has the suffix of `path`, for writers that choose the format by it.

    Raises:
        OutputError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; name a file to write")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: cannot be written: the folder {target.parent} does not exist")
    # Short even if the target's name has the maximum length, and unique, even among machines that share the folder.
    temporary = target.with_name(f".{os.getpid()}-{secrets.randbits(62)}{_PART}{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
