"""What TensorRT says while it builds or runs an engine, kept to explain failures."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

KEPT_WARNINGS = 3
_SOURCE = re.compile(r"\s*\(?In \w+ at \S+\)?")  # where in TensorRT's sources


def one_line(message: str) -> str:
    """A message of TensorRT on one line, without places in its sources."""
    return " ".join(_SOURCE.sub("", message).split())


class Log:
    """Errors, and the last few warnings; both on one line each.

    Attributes:
        errors: errors since the last failure, the latest last.
        warnings: the last warnings, which often say why something could not be done.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: deque[str] = deque(maxlen=KEPT_WARNINGS)

    def take(self) -> tuple[str, str]:
        """The last error, and the last warnings as the end of a sentence, "" if there are none; both are forgotten."""
        error = self.errors[-1] if self.errors else "it does not say why"
        warned = f" (its last warnings: {'; '.join(self.warnings)})" if self.warnings else ""
        self.errors.clear()
        self.warnings.clear()
        return error, warned


def logger(trt: Any, log: Log, other: Callable[[str], None] | None = None) -> Any:
    """A logger for the library `trt` that fills `log`, prints nothing and passes all other messages to `other`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                log.errors.append(one_line(message))
            elif severity == trt.ILogger.WARNING:
                warning = one_line(message)
                if warning not in log.warnings:
                    log.warnings.append(warning)
            elif other is not None:
                other(message)

    return Logger()
