"""The folder of what can be made again: compiled models, and the page for browsers."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

CACHE_BYTES = 2**30
_COMPILED = ("*.blob", "*.kernels")  # of OpenVINO, and of TensorRT-RTX


def cache_folder() -> Path | None:
    """The folder shared by all processes: in DMFNET_CACHE, or else in the user's cache folder.

    Returns None if the folder cannot be written to.
    """
    # Path.home raises a RuntimeError for a user without a home folder.
    with suppress(OSError, RuntimeError):
        base = os.environ.get("DMFNET_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "dmfnet-fast"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK) else None
    return None


def prune(folder: Path) -> None:
    """Remove the least recently used compiled models until the rest fit in CACHE_BYTES."""
    with suppress(OSError):
        states = {file: file.stat() for pattern in _COMPILED for file in folder.glob(pattern)}
        kept = 0
        for file in sorted(states, key=lambda f: max(states[f].st_atime, states[f].st_mtime), reverse=True):
            kept += states[file].st_size
            if kept > CACHE_BYTES:
                file.unlink()
