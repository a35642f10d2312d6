"""What all commands share: errors as one line and exit code 2, warnings as one line."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import click

from dmfnet_fast.errors import DMFNetError, DMFNetWarning, memory_guard

FAILED = 2
Item = TypeVar("Item")


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    prefix = "warning" if issubclass(category, DMFNetWarning) else category.__name__
    click.echo(f"{prefix}: {message}", err=True)


def progress(items: Iterable[Item], label: str, length: int | None = None) -> AbstractContextManager[Iterable[Item]]:
    """`items`, with a progress bar on standard error while they are gone through."""
    return click.progressbar(items, length, label, file=sys.stderr)


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command that turns the package's errors into one line and exit code 2."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("always", DMFNetWarning)
                warnings.showwarning = _show_warning
                try:
                    with memory_guard("use smaller pictures, batches or a smaller preset"):
                        return function(*args, **kwargs)
                except (DMFNetError, OSError) as error:
                    click.echo(f"error: {error}", err=True)
                    sys.exit(FAILED)

        return click.command(
            context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, **attributes
        )(guarded)

    return decorate
