"""Command-line options that both stages share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def training_options(steps: int, batch: int, learning_rate: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Data, output, recipe and machine options, with a stage's own defaults."""
    folder = click.Path(path_type=Path)
    options = [
        click.option("--data", type=folder, required=True, help="Folder with train/MODALITY-MRI/{MRI,MODALITY}/NAME.png."),
        click.option("--out", type=folder, required=True, help="Folder of the run: checkpoint and result."),
        click.option("--steps", default=steps, show_default=True, type=click.IntRange(1), help="Steps of the whole run; the learning rate decays over them."),
        click.option("--batch", default=batch, show_default=True, type=click.IntRange(1), help="Crops (stage 1) or pairs (stage 2) a step."),
        click.option("--crop", default=64, show_default=True, type=click.IntRange(64), help="Side of the square crops; a multiple of 16."),
        click.option("--learning-rate", default=learning_rate, show_default=True, type=click.FloatRange(0, min_open=True)),
        click.option("--ema", default=0.999, show_default=True, type=click.FloatRange(0, 1, max_open=True), help="Decay of the weights' average."),
        click.option("--seed", default=0, show_default=True, type=click.IntRange(0)),
        click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop after this long; the same command continues."),
        click.option("--bf16/--float32", default=True, show_default=True, help="bfloat16 autocast."),
        click.option("--compile/--eager", "compiled", default=False, show_default=True, help="Use torch.compile (needs a C++ compiler on a CPU)."),
        click.option("--device", default="cpu", show_default=True, help="cpu or cuda."),
    ]  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
