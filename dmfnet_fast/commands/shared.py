"""What all commands share: errors as one line and exit code 2, warnings as one line."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import click

from dmfnet_fast.errors import DMFNetError, DMFNetWarning

FAILED = 2


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    prefix = "warning" if issubclass(category, DMFNetWarning) else category.__name__
    click.echo(f"{prefix}: {message}", err=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is the lack of memory, of the machine or of the GPU, in numpy's or torch's words."""
    if isinstance(error, MemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command that turns the package's errors, and lack of memory, into one line and exit code 2."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("always", DMFNetWarning)
                warnings.showwarning = _show_warning
                try:
                    return function(*args, **kwargs)
                except DMFNetError as error:
                    click.echo(f"error: {error}", err=True)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    click.echo("error: out of memory: use smaller pictures, batches or a smaller preset", err=True)
                sys.exit(FAILED)

        return click.command(context_settings={"help_option_names": ["-h", "--help"]}, **attributes)(guarded)

    return decorate
