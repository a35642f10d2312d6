"""Profile of one fusion with PyTorch's profiler: time by kernel name, and by operator and input shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.fusions import KERNELS_CAPTURED, KERNELS_LAUNCHED, Running, Variant, start
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.networks import Case, Networks

CASES = (Case("base", 256, 1), Case("turbo", 256, 1), Case("nano", 256, 1))
FUSIONS = 5  # per profile
LONGEST_NAME = 160  # characters of a kernel's name


def profiled_cases(machine: Machine) -> tuple[Case, ...]:
    """The cases to profile; none in Triton's interpreter, which launches no kernels."""
    return () if machine.interpreted else CASES


def _profiled(running: Running) -> profile:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True) as recorded:
        for _ in range(FUSIONS):
            running.launch()
        torch.cuda.synchronize()
    return recorded


def _started(variant: Variant, case: Case, networks: Networks, read: Callable[[Running], Any]) -> Any:
    networks.machine.free()
    with variant.settings():
        return read(start(variant, case, networks))


def _kernels(recorded: profile) -> Iterator[dict[str, Any]]:
    """One row per kernel name, per fusion, by descending time."""
    times: dict[str, list[float]] = {}
    for event in recorded.events() or ():
        if event.device_type.name == "CUDA":
            times.setdefault(event.name, []).append(event.device_time_total)
    for name, each in sorted(times.items(), key=lambda item: -sum(item[1])):
        yield {"kernel": name[:LONGEST_NAME], "calls": len(each) / FUSIONS, "us": sum(each) / FUSIONS}


def _operators(recorded: profile) -> Iterator[dict[str, Any]]:
    """One row per operator that launches kernels itself and its input shapes, per fusion, by descending time."""
    averages = recorded.key_averages(group_by_input_shape=True)
    # The averages include kernels, some with colons in their C++ names.
    rows = [row for row in averages if row.self_device_time_total > 0 and re.fullmatch(r"\w+::\w+", row.key)]
    for row in sorted(rows, key=lambda row: -row.self_device_time_total):
        shapes = [shape for shape in row.input_shapes if shape]
        yield {
            "operator": row.key,
            "shapes": shapes,
            "calls": row.count / FUSIONS,
            "us": row.self_device_time_total / FUSIONS,
        }


def measure(case: Case, networks: Networks) -> dict[str, Any]:
    """One row: a fusion's kernels as replayed from a CUDA graph, and its operators as launched one by one."""

    def replayed(running: Running) -> tuple[float, list[dict[str, Any]]]:
        whole = networks.machine.time(running.launch, running.stream).median
        return whole, list(_kernels(_profiled(running)))

    whole, kernels = _started(KERNELS_CAPTURED, case, networks, replayed)
    operators = _started(KERNELS_LAUNCHED, case, networks, lambda running: list(_operators(_profiled(running))))
    return {
        "ms": whole,
        "kernels_ms": sum(row["us"] for row in kernels) / 1e3,
        "launches": sum(row["calls"] for row in kernels),
        "kernels": kernels,
        "operators": operators,
    }
