"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

TrainingPrecision: TypeAlias = Literal["bf16", "tf32", "float32"]
Optimizer: TypeAlias = Literal["adamw", "muon"]
LOSS_NAMES = ("hybrid", "hybrid-plain")  # the keys of `train.losses.LOSSES`, which needs PyTorch
DEFAULT_LOSS = "hybrid"


@dataclass(frozen=True)
class Recipe:
    """Settings that determine the result.

    Attributes:
        steps: optimizer steps of the whole run; the learning-rate schedule spans them.
        batch: pairs of crops per step, over all processes.
        crop: side of the square crops in pixels; a multiple of 16, at least 64.
        learning_rate: peak rate, reached after `warmup` steps; then decays to 1% along a half cosine.
        optimizer: "adamw", as published except for its weight decay, or "muon" (see `train.muon`).
        weight_decay: weight decay of the optimizer.
        warmup: steps of linear warm-up, but at most a tenth of all.
        ema: decay of the weights' moving average, which is the run's result.
        clip: largest gradient norm.
        seed: seed of the initial weights and of every random draw.
    """

    steps: int
    batch: int
    crop: int
    learning_rate: float
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.01
    warmup: int = 200
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, 0 to steps - 1."""
        warmup = min(self.warmup, self.steps // 10)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Run:
    """A recipe, its data, and settings for this machine.

    Attributes:
        data: folder that contains `train/MODALITY-MRI/...`.
        out: folder for the checkpoint, the TensorBoard log and the result.
        init: file of weights to start from; None for random weights.
        minutes: stop after this time, to be continued; None trains to the end.
        validate_every: steps between validations.
        precision: "bf16" is autocast; "tf32" lets a GPU round the inputs of float32 products to 10 bits of mantissa.
        compiled: whether to use torch.compile.
        device: "cpu", or "cuda" with one GPU per process.
    """

    data: Path
    out: Path
    recipe: Recipe
    init: Path | None
    minutes: float | None
    validate_every: int
    precision: TrainingPrecision
    compiled: bool
    device: str
