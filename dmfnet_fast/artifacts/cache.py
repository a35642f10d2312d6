"""The folder of what can be made again: compiled models, and the page for browsers."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


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
