"""A second CUDA stream for parts of a network that can run beside the rest.

Small launches leave most of a GPU idle; two chains of them on two streams fill it better. In a captured CUDA graph,
they become parallel branches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_side: ContextVar[Any] = ContextVar("side stream", default=None)


@contextmanager
def with_side_stream(stream: Any) -> Iterator[None]:
    """Within this context, networks may run parts of themselves on `stream`; with None, all is on the current one."""
    token = _side.set(stream)
    try:
        yield
    finally:
        _side.reset(token)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def side_stream() -> Any:
    """The stream of `with_side_stream`, or None. A constant to torch.compile, which cannot trace it."""
    return _side.get()


@contextmanager
def beside(stream: Any, after: bool = True) -> Iterator[None]:
    """Runs what is launched within this context on `stream`; None changes nothing.

    Whatever it reads must be kept until `join`: the current stream may overwrite memory that is freed earlier.

    Args:
        after: whether to wait for everything launched on the current stream so far.
    """
    if stream is None:
        yield
        return
    if after:
        stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield


def join(stream: Any) -> None:
    """Makes the current stream wait for everything launched on `stream`; None changes nothing."""
    if stream is not None:
        torch.cuda.current_stream(stream.device).wait_stream(stream)
