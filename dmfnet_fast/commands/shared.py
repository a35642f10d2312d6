"""Behavior shared by all commands: one-line errors with exit code 2, one-line warnings, and progress."""

from __future__ import annotations

import functools
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from operator import length_hint
from pathlib import Path
from typing import Any, TypeVar

import click

from dmfnet_fast.errors import DMFNetError, DMFNetWarning, memory_guard

FAILED = 2
# A file or folder. Whether it can be read shows when it is: click's own check would print a usage message.
PATH = click.Path(readable=False, path_type=Path)
SECONDS_BETWEEN_LINES = 10.0  # between lines of progress if standard error is not a terminal
Item = TypeVar("Item")


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    prefix = "warning" if issubclass(category, DMFNetWarning) else category.__name__
    click.echo(f"{prefix}: {message}", err=True)


def progress(items: Iterable[Item], label: str, length: int | None = None) -> AbstractContextManager[Iterable[Item]]:
    """Iterate over `items` with progress on standard error: a bar on a terminal, else a line every ten seconds."""
    if sys.stderr.isatty():
        return click.progressbar(items, length, label, file=sys.stderr)
    return closing(_lines(items, label, length if length is not None else length_hint(items)))


def _lines(items: Iterable[Item], label: str, length: int) -> Generator[Item, None, None]:
    """Iterate over `items`; print how many are done at the start, at intervals, and at the end."""
    click.echo(f"{label}: 0 of {length}", err=True)
    last_printed = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if done == length or time.monotonic() - last_printed >= SECONDS_BETWEEN_LINES:
            click.echo(f"{label}: {done} of {length}", err=True)
            last_printed = time.monotonic()


@contextmanager
def resumable(overwrite: bool) -> Iterator[None]:
    """Say after Ctrl-C that repeating the command goes on; click then ends the command.

    Args:
        overwrite: whether the command was given --overwrite, with which it would begin anew.
    """
    try:
        yield
    except KeyboardInterrupt:
        how = "repeat the command without --overwrite" if overwrite else "repeat the command"
        click.echo(f"\ninterrupted: what is done is kept; {how} to go on", err=True)
        raise


def _told(error: Exception) -> str:
    """An error in words; of the system's, the file first, as in ours."""
    if isinstance(error, OSError) and not isinstance(error, DMFNetError) and error.filename and not error.filename2:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Decorator for a click command that prints user errors as one line and exits with 2."""

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
                    click.echo(f"error: {_told(error)}", err=True)
                    sys.exit(FAILED)

        return click.command(
            context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, **attributes
        )(guarded)

    return decorate
