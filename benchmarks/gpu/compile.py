"""Compiles all needed kernels into Triton's cache in parallel; one by one, this takes minutes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from typing import Any

import torch

from benchmarks.gpu.kernels import checked_cases
from benchmarks.gpu.machine import Machine, find_machine
from benchmarks.gpu.networks import PRECISIONS, Networks, check, checked_weights
from dmfnet_fast.precision import FloatPrecision
from kernels import launch
from kernels.cases.record import Case, Draw
from kernels.compile import Signature, signature_of
from kernels.launch import assumed

LONGEST_MESSAGE = 500  # characters
MOST_PROCESSES = 14  # each takes half a gigabyte of GPU memory

Job = tuple[int, int]  # index of a case in `checked_cases`, and of one of its types


def jobs(machine: Machine) -> Iterator[Job]:
    """Yields every case and type that needs a binary that no earlier one needs."""
    known: set[Signature] = set()
    for index, (case, dtypes) in enumerate(checked_cases(machine)):
        for type_index, dtype in enumerate(dtypes):
            with assumed(machine.architecture):
                _, launches = case.operation.plan(*case.make(Draw(dtype, "meta")))
            needed = {signature_of(one) for one in launches}
            if not needed <= known:
                known |= needed
                yield index, type_index


def _compile_case(index: int, type_index: int) -> str | None:
    """Launches a case once and returns what failed, if anything; the case's own step will fail again and report it."""
    case, dtypes = _checked_cases()[index]
    return try_launch(case, case.make(Draw(dtypes[type_index], _machine().device.type)))


def _compile_network(weights: str, precision: FloatPrecision) -> str | None:
    """Like `_compile_case`, for a network that is checked."""
    networks = Networks(_machine())
    return _attempt(f"{weights} {precision}", lambda: check(weights, precision, False, networks))


def _machine() -> Machine:
    machine = find_machine()
    assert isinstance(machine, Machine)
    return machine


@lru_cache
def _checked_cases() -> list[tuple[Case, tuple[torch.dtype, ...]]]:
    """Those of this machine, which take a third of a second to list."""
    return checked_cases(_machine())


def _run(job: Callable[[], str | None]) -> str | None:
    return job()


def try_launch(case: Case, arguments: Sequence[Any]) -> str | None:
    """Launches a case and returns what failed, or None."""
    return _attempt(str(case), lambda: launch.run(case.operation.plan(*arguments)))


def _attempt(name: str, call: Callable[[], Any]) -> str | None:
    try:
        call()
        torch.cuda.synchronize()
    except Exception as error:  # compilers and drivers may raise anything
        return f"{name}: {type(error).__name__}: {error}"[:LONGEST_MESSAGE]
    finally:
        torch.cuda.empty_cache()
    return None


def run_in_processes(compile_one: Callable[[Any], str | None], todo: Sequence[Any]) -> dict[str, Any]:
    """Runs all jobs in processes; returns the seconds taken, the number of jobs, and messages of those that failed."""
    begun = time.monotonic()
    workers = max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) - 1))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        failed = [message for message in pool.map(compile_one, todo) if message]
    return {"seconds": time.monotonic() - begun, "jobs": len(todo), "failed": failed}


def compile_all(machine: Machine, networks: bool) -> dict[str, Any]:
    """Like `run_in_processes`, for all cases that are checked or timed; the interpreter compiles nothing.

    With `networks`, first for the networks that are checked: they have binaries of their own, and take longest.
    """
    if machine.interpreted:
        return {"seconds": 0.0, "jobs": 0, "failed": []}
    checked = itertools.product(checked_weights(machine), reversed(PRECISIONS)) if networks else ()
    todo = [partial(_compile_network, weights, precision) for weights, precision in checked]
    return run_in_processes(_run, [*todo, *(partial(_compile_case, *job) for job in jobs(machine))])
