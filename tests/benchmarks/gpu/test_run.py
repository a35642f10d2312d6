"""The GPU script, run on a CPU in Triton's interpreter; it must not time anything that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from benchmarks.gpu import compile as gpu_compile
from benchmarks.gpu import fusions as gpu_fusions
from benchmarks.gpu import images as gpu_images
from benchmarks.gpu import kernels as gpu_kernels
from benchmarks.gpu import networks as gpu_networks
from benchmarks.gpu import profile as gpu_profile
from benchmarks.gpu import run as gpu
from benchmarks.gpu.machine import Machine
from kernels import launch
from kernels.cases import ODD_CASES, OPERATIONS
from kernels.cases.convolution_epilogue import EPILOGUE
from kernels.cases.record import Case, Draw
from kernels.compile import signature_of

ROOT = Path(__file__).parents[3]
FLOAT32_ROUNDING = 1e-5  # relative


def run_script(output: Path, interpret: bool, *options: str) -> subprocess.CompletedProcess[str]:
    # One thread: several would wait for each other if tests run in parallel.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["TRITON_INTERPRET"] = "1" if interpret else "0"
    command = [sys.executable, "-m", "benchmarks.gpu", "-o", str(output), *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def machine() -> Machine:
    return Machine(torch.device("cpu"), True, 2**14, 1e9, {"float16": 1e12})


def test_interpreted(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    done = run_script(output, True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())
    assert results["interpreted"] is True
    assert results["running"] is None
    assert results["left_out"] == []
    assert set(results["ceilings"]) == {"copy", "float16", "bfloat16", "tf32", "float32"}
    operations = {row["operation"]: row for row in results["checks"]["operations"]}
    assert set(operations) == {operation.name for operation in OPERATIONS}
    assert all(row["within"] for row in operations.values())
    for name in ("attention", "first_convolution"):
        assert operations[name]["errors"]["bfloat16"].startswith("left out")
    assert operations["diffuse"]["errors"]["bfloat16"] <= 1
    assert [row["precision"] for row in results["checks"]["networks"]] == 2 * ["float16", "bfloat16", "float32"]
    assert all(row["within"] and row["same_bits"] for row in results["checks"]["networks"])
    assert {row["operation"] for row in results["kernels"]} == {
        operation.name for operation in OPERATIONS if operation.eager
    }
    assert {row["network"] for row in results["fusions"]} == {"tiny"}
    assert results["profile"] == results["pictures"] == []
    for row in results["kernels"] + results["fusions"]:
        assert row["ms"] > 0
        assert row["interpreted"] is True
    published, *others = results["fusions"]
    assert published["ratio"] == 1
    assert len(others) == 3
    for row in others:
        assert row["ratio"] == pytest.approx(row["ms"] / published["ms"])
        assert 0 < row["max_abs"] <= results["limits"]["float16"]["max_abs"]
    assert "no time is a measurement" in done.stdout


def test_without_a_gpu(tmp_path: Path) -> None:
    done = run_script(tmp_path / "results.json", False)
    assert done.returncode == gpu.NO_GPU
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_wrong_operation_is_not_timed() -> None:
    """An operation that writes nothing leaves the NaN that filled its memory."""

    def plan(h: torch.Tensor, *_: object) -> Any:
        return (launch.new_feature_map(h.shape, h),), []

    right = next(case for case in ODD_CASES if case.operation is EPILOGUE)
    case = replace(right, operation=replace(EPILOGUE, plan=plan))
    row = gpu_kernels.measure(case, machine())
    assert row["refused"].startswith("wrong")
    assert "ms" not in row
    assert gpu_kernels.check(case, gpu_kernels.DTYPES, machine())["within"] is False


def test_wrong_fusion_is_not_timed() -> None:
    def build(networks: gpu_networks.Networks, name: str) -> gpu_fusions.Forward:
        net = networks.optimized(name, "float32", kernels=False)
        return lambda **tensors: net(**tensors) + 0.02

    variant = gpu_fusions.Variant("wrong", "float16", build)
    row = gpu_fusions.measure(variant, gpu_networks.INTERPRETED_CASE, gpu_networks.Networks(machine()))
    assert row["max_abs"] == pytest.approx(0.02, abs=1e-4)
    assert row["refused"].startswith("wrong: max abs error 0.02 (limit 0.016)")
    assert "ms" not in row


@pytest.mark.parametrize("case", [case for case in ODD_CASES if case.operation.eager], ids=str)
def test_eager_computes_the_same(case: Case) -> None:
    arguments = case.make(Draw(torch.float32, "cpu"))
    wanted = case.operation.reference(*arguments)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    assert case.operation.eager is not None
    got = case.operation.eager(*arguments)
    assert (got - wanted).norm() <= FLOAT32_ROUNDING * wanted.norm()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a fake GPU, which only has an architecture."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    return Machine(torch.device("cuda"), False, 50 * 2**20)


def test_steps_on_a_gpu(hopper: Machine) -> None:
    """Every section is there, and the most informative steps come first."""
    todo = list(gpu.steps(hopper))
    assert {step.section for step in todo} == set(gpu.SECTIONS)
    assert len({str(step) for step in todo}) == len(todo)
    sections = [step.section for step in todo]
    first = {section: sections.index(section) for section in gpu.SECTIONS}
    assert sorted(first, key=lambda section: first[section]) == list(gpu.SECTIONS)
    fusions = [step.row for step in todo if step.section == "fusions"]
    assert [(row["network"], row["size"], row["batch"]) for row in fusions] != []
    first_networks = [row["network"] for row in fusions[: gpu_fusions.FIRST_ROWS]]
    assert list(dict.fromkeys(first_networks)) == ["base", "turbo", "nano"]
    assert fusions[-1]["way"] == gpu_fusions.TUNED.name
    assert {step.row["way"] for step in todo if step.section == "pictures"} == {
        gpu_images.ALL_ON_GPU,
        gpu_images.RULES_ON_CPU,
        gpu_images.BY_KERNELS,
    }


def test_every_binary_is_compiled_once(hopper: Machine) -> None:
    """In fewer jobs than there are cases, because many cases share binaries."""
    checked = gpu_kernels.checked_cases(hopper)

    def needed(case: Case, dtype: torch.dtype) -> set[Any]:
        with launch.assumed(hopper.architecture):
            return {signature_of(one) for one in case.operation.plan(*case.make(Draw(dtype, "meta")))[1]}

    jobs = list(gpu_compile.jobs(hopper))
    chosen = [needed(checked[number][0], checked[number][1][type_index]) for number, type_index in jobs]
    everything = set().union(*(needed(case, dtype) for case, dtypes in checked for dtype in dtypes))
    assert set().union(*chosen) == everything
    assert set().union(*(needed(case, torch.float16) for case in gpu_kernels.timed_cases(hopper))) <= everything
    assert len(jobs) < sum(len(dtypes) for _, dtypes in checked)
    done: set[Any] = set()
    for each in chosen:
        assert each - done, "a job that compiles nothing new"
        done |= each


def test_every_tile_is_checked(hopper: Machine) -> None:
    """Also those that a network has at larger batches alone: one of them was miscompiled."""
    names = [case.name for case, _ in gpu_kernels.checked_cases(hopper)]
    for name in (
        "64 3x3 bias +64 +32 last by 128x64x64, 4 warps",
        "128 3x3 by 128x128x64, 4 warps, 3 stages, described",
        "32 3x3 bias +32 +32 last by 128x32x32, 4 warps, 2 stages, described, 8 rows",
    ):
        assert any(name in one for one in names), name
    assert not any("32 3x3 bias by 128x64x64" in one for one in names), "an earlier rule takes them at every size"


@pytest.mark.parametrize("same", [False, True])
def test_images_are_compared(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        def __init__(self, *_: object, device: str) -> None:
            assert device == "cuda"
            self._engine = SimpleNamespace(takes_pixels=None)

        def fuse(self, _: Any, other: Any) -> Any:
            return other if same or self._engine.takes_pixels else other + 1

        def __enter__(self) -> Stub:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(gpu_images, "Fuser", Stub)
    for variant in gpu_images.VARIANTS:
        row = gpu_images.measure("nano", variant)
        assert row["within"] is same
        assert row["ms"] >= row["min_ms"] > 0


def test_profiled_kernels_are_added_up() -> None:
    """Per fusion and kernel name, without events of the CPU."""

    def event(name: str, us: float, device: str = "CUDA") -> Any:
        kind = getattr(DeviceType, device)
        return SimpleNamespace(name=name, device_time_total=us, device_type=kind)

    one = [event("short", 1.0), event("long", 5.0), event("short", 2.0), event("host", 99.0, "CPU")]
    recorded: Any = SimpleNamespace(events=lambda: gpu_profile.FUSIONS * one)
    assert list(gpu_profile._kernels(recorded)) == [
        {"kernel": "long", "calls": 1, "us": 5},
        {"kernel": "short", "calls": 2, "us": 3},
    ]


def steps(_: Machine) -> list[gpu.Step]:
    def lacks_memory() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    def measured() -> dict[str, Any]:
        return {"ms": 2.0, "iqr_ms": 0.1, "of_floor": 3.0, "max_abs": 0.0, "psnr": None}

    case = {"network": "tiny", "size": 64, "batch": 1}
    variants = {gpu_fusions.PUBLISHED.name: measured, "large": lacks_memory, "other": measured}
    return [gpu.Step("fusions", "fusions", case | {"way": name}, run, str) for name, run in variants.items()]


@pytest.mark.parametrize("seconds", [60, -1])
def test_failed_and_late_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(gpu, "steps", steps)
    output = tmp_path / "results.json"
    results = gpu.Results.new(output, machine(), minutes=1)
    assert gpu.run(machine(), results, gpu.SECTIONS, time.monotonic() + seconds)
    written = json.loads(output.read_text())
    assert written["running"] is None
    rows = {row["way"]: row for row in written["fusions"]}
    if seconds < 0:
        assert rows == {}
        assert written["left_out"] == [str(step) for step in steps(machine())]
    else:
        assert written["left_out"] == []
        assert rows["large"]["failed"].startswith("OutOfMemoryError: CUDA out of memory")
        assert rows["other"]["ratio"] == 1
        assert "OutOfMemoryError" in gpu.summary(written)
