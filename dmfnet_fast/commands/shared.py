"""What all commands share: errors as one line and exit code 2, warnings as one line, progress."""

from __future__ import annotations

import functools
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, closing
from operator import length_hint
from typing import Any, TypeVar

import click

from dmfnet_fast.errors import DMFNetError, DMFNetWarning, memory_guard

FAILED = 2
SECONDS_BETWEEN_LINES = 10.0  # of progress, where standard error is no terminal
Item = TypeVar("Item")


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    prefix = "warning" if issubclass(category, DMFNetWarning) else category.__name__
    click.echo(f"{prefix}: {message}", err=True)


def progress(items: Iterable[Item], label: str, length: int | None = None) -> AbstractContextManager[Iterable[Item]]:
    """`items`, with progress on standard error while they are gone through: a bar, or in a file a line at times."""
    if sys.stderr.isatty():
        return click.progressbar(items, length, label, file=sys.stderr)
    return closing(_lines(items, label, length if length is not None else length_hint(items)))


def _lines(items: Iterable[Item], label: str, length: int) -> Generator[Item, None, None]:
    """`items`; tells how many are done at the beginning, at times, and at the end."""
    click.echo(f"{label}: 0 of {length}", err=True)
    told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if done == length or time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            click.echo(f"{label}: {done} of {length}", err=True)
            told = time.monotonic()


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command that turns the package's errors into one line and exit code 2."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("always", DMFNetWarning)
                warnings.showwarning = _show_warning
                try:
                    with memory_guard("use smaller images, batches or a smaller preset"):
                        return function(*args, **kwargs)
                except (DMFNetError, OSError) as error:
                    click.echo(f"error: {error}", err=True)
                    sys.exit(FAILED)

        return click.command(
            context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, **attributes
        )(guarded)

    return decorate
