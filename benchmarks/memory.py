"""Memory of this process, as Linux reports it; 0 on other systems."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _trim() -> None:
    """Returns freed memory to the system, if the C library can."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _field(name: str) -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def resident() -> int:
    """Resident memory in bytes."""
    _trim()
    return _field("VmRSS")


def peak() -> int:
    """Peak resident memory in bytes since `reset_peak`."""
    return _field("VmHWM")


def reset_peak() -> None:
    """Starts a new measurement of `peak`."""
    _trim()
    with suppress(OSError):
        _CLEAR.write_text("5")
