"""Time of a training step on this machine. Run: `pytest --benchmark-only`; compare only within one run.

A stage II step on tiny, with 8 pairs of 64x64 crops, takes 50 GFLOP for the frozen denoiser and 11 GFLOP for the fusion
network, forward and backward; a stage I step, with 16 crops, takes 37 GFLOP.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmfnet_fast.commands.phantom import write_phantoms
from dmfnet_fast.config import DMFNET_PRESETS
from dmfnet_fast.engines.devices import has_native_bfloat16
from dmfnet_fast.model import Denoiser, DMFNet, save_model
from dmfnet_fast.model.denoiser import TAPS, UP_BLOCKS
from train import loop
from train.denoising import Denoising
from train.fusing import Fusing
from train.recipe import Recipe, Run, TrainingPrecision
from train.task import Draw, Task

BATCH, CROP = 8, 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    list(write_phantoms(folder, train=2, test=0, size=128))
    return folder


def make_run(data: Path, precision: TrainingPrecision, init: Path | None) -> Run:
    if precision == "bf16" and not has_native_bfloat16("cpu"):
        pytest.skip("this CPU has no native bfloat16")
    recipe = Recipe(steps=1000, batch=BATCH, crop=CROP, learning_rate=1e-4)
    return Run(data, data / "run", recipe, init, None, 1000, precision, compiled=False, device="cpu")


def make_step(task: Task) -> Callable[[], float]:
    """Returns a whole training step: data, loss, gradient, clipping and update."""
    parameters = [p for p in task.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4, fused=True)

    def step() -> float:
        draw = Draw(np.random.default_rng(0), torch.Generator().manual_seed(0), slice(0, BATCH))
        loss = task.loss(task.network, draw)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.item()

    return step


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.benchmark(group="stage I step, tiny, 8 pairs of 64x64", min_rounds=10, warmup=True, warmup_iterations=1)
def test_stage1(benchmark: Callable[..., Any], data: Path, precision: TrainingPrecision) -> None:
    run = make_run(data, precision, None)
    with loop.joined(run) as accelerator:
        assert np.isfinite(benchmark(make_step(Denoising(run, "tiny", accelerator))))


@pytest.mark.parametrize("variant", ["as published", "float32", "bf16", "bf16, up-path unfrozen"])
@pytest.mark.benchmark(group="stage II step, tiny, 8 pairs of 64x64", min_rounds=10, warmup=True, warmup_iterations=1)
def test_stage2(benchmark: Callable[..., Any], data: Path, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """'As published' is float32 with the denoiser's unused tail, but with our batch (the published one is 1)."""
    untrained = data / "tiny.safetensors"
    save_model(DMFNet(DMFNET_PRESETS["tiny"]), untrained)
    run = make_run(data, "bf16" if variant.startswith("bf16") else "float32", untrained)
    if variant == "as published":

        def with_tail(self: Denoiser, x: Tensor, level: Tensor) -> list[Tensor]:
            outputs = list(self.up_path(x, level))
            self.final_conv(outputs[-1])
            return [outputs[UP_BLOCKS - 1 - tap] for tap in reversed(TAPS)]

        monkeypatch.setattr(Denoiser, "features", with_tail)
    with loop.joined(run) as accelerator:
        assert np.isfinite(benchmark(make_step(Fusing(run, None, None, variant.endswith("unfrozen"), accelerator))))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.benchmark(group="stage II step, nano, 8 pairs of 64x64", min_rounds=10, warmup=True, warmup_iterations=1)
def test_student(benchmark: Callable[..., Any], data: Path, precision: TrainingPrecision) -> None:
    run = make_run(data, precision, None)
    with loop.joined(run) as accelerator:
        assert np.isfinite(benchmark(make_step(Fusing(run, None, "nano", False, accelerator))))
