"""Whether the disk of a node's folder is full, as the operating system and SQLite say it."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

from dmfnet_fast.errors import NodeError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What SQLite says where it cannot make the files beside its own, for lack of space or otherwise.
_UNCLEAR = ("disk I/O error", "unable to open database file")
# With less free than this, a disk is full: SQLite needs some room to change anything.
LEAST = 2**20


class NoSpaceError(NodeError):
    """A node's folder that cannot be used because its disk is full."""


def free_space(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, or where it would be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def lacks_space(error: OSError | sqlite3.Error, folder: Path) -> bool:
    """Whether an error about a file in a folder means that the disk is full."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    said = str(error)
    return "full" in said or (said in _UNCLEAR and free_space(folder) < LEAST)
