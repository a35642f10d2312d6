"""Command-line options that both stages share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dmfnet_fast.errors import require


def require_training() -> None:
    """Raise a MissingExtraError unless what training imports is installed."""
    for module in ("torch", "safetensors", "tqdm"):
        require(module, extra="train")


class Crop(click.IntRange):
    """A side that the network can take."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        side: int = super().convert(value, param, ctx)
        if side % 16:
            self.fail(f"{side} is not a multiple of 16", param, ctx)
        return side


def training_options(
    steps: int, batch: int, learning_rate: float
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Data, output, recipe and machine options, with a stage's own defaults."""
    folder = click.Path(path_type=Path)
    positive = click.FloatRange(0, min_open=True)
    options = [
        click.option(
            "--data", type=folder, required=True, help="Folder with train/MODALITY-MRI/{MRI,MODALITY}/NAME.png."
        ),
        click.option("--out", type=folder, required=True, help="Folder of the run: checkpoint and result."),
        click.option("--steps", default=steps, type=click.IntRange(1), help="Steps of the whole run."),
        click.option(
            "--batch", default=batch, type=click.IntRange(1), help="Crops (stage 1) or pairs (stage 2) a step."
        ),
        click.option("--crop", default=64, type=Crop(64), help="Side of the square crops; a multiple of 16."),
        click.option("--learning-rate", default=learning_rate, type=positive, help="The peak; decays over --steps."),
        click.option("--ema", default=0.999, type=click.FloatRange(0, 1, max_open=True), help="Decay of the average."),
        click.option("--seed", default=0, type=click.IntRange(0), help="Of weights and random draws."),
        click.option("--minutes", type=positive, help="Stop after this long; the same command continues."),
        click.option("--bf16/--float32", default=True, help="bfloat16 autocast."),
        click.option(
            "--compile/--eager", "compiled", default=False, help="Use torch.compile (a CPU needs a C++ compiler)."
        ),
        click.option("--device", default="cpu", help="cpu or cuda."),
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
