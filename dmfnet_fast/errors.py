"""Errors that a user can cause and fix. Commands print them as one line and exit with status 2."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class DMFNetError(Exception):
    """Base of all errors below; the message says what is wrong and what to do."""


class ImageError(DMFNetError, ValueError):
    """An image or array that cannot be fused as given."""


class VolumeError(ImageError):
    """A DICOM series or NIfTI file that cannot be read as one volume, or two that cannot be aligned."""


class EngineError(DMFNetError):
    """An engine or weights file that cannot be opened or does not fit this machine."""


class OutputError(DMFNetError, OSError):
    """A result that cannot be written to the requested path."""


class NodeError(DMFNetError):
    """A DICOM node that cannot be started as its settings say."""


class NodeBusyError(NodeError):
    """A DICOM node whose port or folder another process uses now, or whose address this machine does not have yet."""


class ClusterError(DMFNetError):
    """A cluster of machines that cannot be reached, or whose workers cannot do what is asked for."""


class MissingExtraError(DMFNetError, ImportError):
    """An optional dependency that is not installed."""


class OutOfMemoryError(DMFNetError, MemoryError):
    """Insufficient memory on the host or the GPU."""


class DMFNetWarning(UserWarning):
    """Something that works but is probably not what the user meant."""


def warn(message: str) -> None:
    """Issue `message` as a `DMFNetWarning`."""
    warnings.warn(message, DMFNetWarning, stacklevel=3)


# In order: CUDA; torch's CPU allocator on Linux and on Windows; OpenVINO and its oneDNN backend.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "could not create a memory object",
)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error of any supported library means that memory ran out."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in message for phrase in _OUT_OF_MEMORY)


@contextmanager
def memory_guard(advice: str) -> Iterator[None]:
    """Turn any library's out-of-memory error into an `OutOfMemoryError` whose message ends in `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, DMFNetError):
            raise
        if is_lack_of_memory(error):
            raise OutOfMemoryError(f"out of memory: {advice}") from error
        raise


def require(module: str, extra: str, hint: str = "") -> ModuleType:
    """Import an optional dependency. `hint` is appended to the installation instructions in the error message.

    Raises:
        MissingExtraError: `module` is not installed or cannot be loaded; the message names the extra that provides it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(f"{module} is not installed: pip install 'dmfnet-fast[{extra}]'{hint}") from error
    except (ImportError, OSError) as error:
        raise MissingExtraError(
            f"{module} is installed but cannot be loaded ({error}): reinstall it, pip install 'dmfnet-fast[{extra}]'"
        ) from error
