"""Compiles all kernels that will be needed into Triton's cache, many at a time: one by one it takes minutes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.gpu.kernels import checked_cases
from benchmarks.gpu.machine import Machine, find_machine
from kernels import launch
from kernels.cases.record import Case, Draw
from kernels.compile import Signature, signature_of
from kernels.launch import assumed

LONGEST_MESSAGE = 500  # characters
MOST_PROCESSES = 14  # each holds half a gigabyte of the GPU

Job = tuple[int, int]  # numbers of a case among those that are checked, and of one of its types


def jobs(machine: Machine) -> Iterator[Job]:
    """Every case and type that needs a binary which no earlier one needs."""
    known: set[Signature] = set()
    for number, (case, dtypes) in enumerate(checked_cases(machine)):
        for which, dtype in enumerate(dtypes):
            with assumed(machine.architecture):
                _, launches = case.operation.plan(*case.make(Draw(dtype, "meta")))
            needed = {signature_of(one) for one in launches}
            if not needed <= known:
                known |= needed
                yield number, which


def _compile(job: Job) -> str | None:
    """Launch a case once; returns what went wrong, which the case's own step will meet again."""
    machine = find_machine()
    assert isinstance(machine, Machine)
    case, dtypes = checked_cases(machine)[job[0]]
    return launched(case, case.make(Draw(dtypes[job[1]], machine.device.type)))


def launched(case: Case, arguments: Sequence[Any]) -> str | None:
    """Launch a case; returns what went wrong."""
    try:
        launch.run(case.operation.plan(*arguments))
        torch.cuda.synchronize()
    except Exception as error:  # compilers and drivers raise what they like
        return f"{case}: {type(error).__name__}: {error}"[:LONGEST_MESSAGE]
    finally:
        torch.cuda.empty_cache()
    return None


def in_processes(compile_one: Callable[[Any], str | None], todo: Sequence[Any]) -> dict[str, Any]:
    """Seconds that it took, how many jobs there were, and what failed."""
    begun = time.monotonic()
    workers = max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) - 1))
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        failed = [said for said in pool.map(compile_one, todo) if said]
    return {"seconds": time.monotonic() - begun, "jobs": len(todo), "failed": failed}


def compile_all(machine: Machine) -> dict[str, Any]:
    """As `in_processes`, for all cases that are checked or timed. Interpreted, nothing is compiled."""
    if machine.interpreted:
        return {"seconds": 0.0, "jobs": 0, "failed": []}
    return in_processes(_compile, list(jobs(machine)))
