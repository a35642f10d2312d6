"""Calls during which coverage is not measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, called without the tracer of coverage, which makes Python code two to three times slower.

    For functions of other libraries that take seconds in Python. What they call back of ours counts as not covered.
    Since Python 3.14, coverage does not trace, and this changes nothing.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)

    return call
