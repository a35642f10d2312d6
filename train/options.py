"""Command-line options that both stages share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dmfnet_fast.errors import require
from train.recipe import Recipe, Run

RECIPE = ("steps", "batch", "crop", "learning_rate", "ema", "seed")
MACHINE = ("data", "out", "minutes", "bf16", "compiled", "device")


def report(run: Run, done: int, result: str) -> None:
    """Say what came of a run."""
    rest = "" if done >= run.recipe.steps else f"; stopped at step {done} of {run.recipe.steps}: repeat to go on"
    click.echo(f"{run.out / result}{rest}")


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
    """Data, output, recipe and machine options, with a stage's own defaults.

    The command gets them as one `Run`, after it is known that what training imports is installed.
    """
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
        click.option("--seed", default=0, type=click.IntRange(0, 2**31 - 1), help="Of weights and random draws."),
        click.option("--minutes", type=positive, help="Stop after this long; the same command continues."),
        click.option("--bf16/--float32", default=True, help="bfloat16 autocast."),
        click.option(
            "--compile/--eager", "compiled", default=False, help="Use torch.compile (a CPU needs a C++ compiler)."
        ),
        click.option("--device", default="cpu", help="cpu or cuda."),
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def assembled(**given: Any) -> Any:
            recipe = Recipe(**{name: given.pop(name) for name in RECIPE})
            run = Run(recipe=recipe, **{name: given.pop(name) for name in MACHINE})
            for module in ("torch", "safetensors", "tqdm"):
                require(module, extra="train")
            return function(run, **given)

        for option in reversed(options):
            assembled = option(assembled)
        return assembled

    return decorate
