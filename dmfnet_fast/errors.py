"""The errors that a user can cause and mend. Commands print them as one line and exit with 2."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType


class DMFNetError(Exception):
    """Base of all errors below: the message names what is wrong and what to do."""


class PictureError(DMFNetError, ValueError):
    """A picture or array that cannot be fused as given."""


class EngineError(DMFNetError):
    """An engine or weights file that cannot be opened or does not fit this machine."""


class OutputError(DMFNetError, OSError):
    """A result that cannot be written where it was asked for."""


class MissingExtraError(DMFNetError, ImportError):
    """An optional dependency that is not installed."""


class DMFNetWarning(UserWarning):
    """Something that works but is probably not what the user meant."""


def warn(message: str) -> None:
    """Issue `message` as a `DMFNetWarning`, attributed to the code that called the package."""
    warnings.warn(message, DMFNetWarning, stacklevel=3)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingExtraError: `module` is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed: pip install 'dmfnet-fast[{extra}]'"
        ) from error
