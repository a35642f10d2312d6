"""What a training run is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

TrainingPrecision: TypeAlias = Literal["bf16", "tf32", "float32"]
Optimizer: TypeAlias = Literal["adamw", "muon"]
DEFAULT_LOSS = "hybrid"  # of `train.losses.LOSSES`, which needs PyTorch


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: optimizer steps of the whole run; the learning-rate schedule spans them.
        batch: pairs of crops a step, over all processes.
        crop: side of the square crops, pixels; a multiple of 16, at least 64.
        learning_rate: the peak, after `warmup` steps but at most a tenth of all; then a half cosine to 1% of it.
        optimizer: "adamw", as published but for its decay, or "muon" (see `train.muon`).
        weight_decay: of the optimizer.
        ema: decay of the weights' moving average, which is what the run delivers.
        clip: largest gradient norm.
        seed: of the weights' start and of every random draw.
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
        """Learning rate of step 0..steps-1."""
        warmup = min(self.warmup, self.steps // 10)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Run:
    """A recipe, its data, and how this machine works on it.

    Attributes:
        data: folder that holds `train/MODALITY-MRI/...`.
        out: folder for the checkpoint, the TensorBoard log and the result.
        init: weights to start from; None starts from random ones.
        minutes: stop after this long, to be continued; None trains to the end.
        validate_every: steps between validations.
        precision: "bf16" is autocast; "tf32" lets a GPU round products of float32 to 10 bits.
        compiled: use torch.compile.
        device: "cpu", or "cuda" (each process its own GPU).
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
