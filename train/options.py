"""Command-line options of both stages."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, get_args

import click

from dmfnet_fast.commands.shared import PATH
from dmfnet_fast.engines.devices import has_native_bfloat16
from dmfnet_fast.errors import require
from dmfnet_fast.images.padding import STRIDE
from train.recipe import Recipe, Run, TrainingPrecision

RECIPE = ("steps", "batch", "crop", "learning_rate", "optimizer", "ema", "seed")
MACHINE = ("data", "out", "init", "minutes", "validate_every", "precision", "compiled", "device")
LIBRARIES = ("torch", "safetensors", "tqdm", "accelerate", "tensorboard")


def report(run: Run, done: int, result: str) -> None:
    """Prints the result of a run, in the first process only."""
    if int(os.environ.get("RANK", "0")) > 0:
        return
    message = str(run.out / result)
    if done < run.recipe.steps:
        message += f"; stopped at step {done} of {run.recipe.steps}: repeat the command to continue"
    click.echo(message)


class Positive(click.FloatRange):
    """A finite number greater than 0."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class Crop(click.IntRange):
    """A crop size that the networks accept: a multiple of their stride."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        side: int = super().convert(value, param, ctx)
        if side % STRIDE:
            self.fail(f"{side} is not a multiple of {STRIDE}", param, ctx)
        return side


def _device(name: str) -> str:
    torch = require("torch", extra="train")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _precision(name: str, device: str) -> str:
    if name == "tf32" and device != "cuda":
        raise click.UsageError("--precision tf32 needs a CUDA GPU; use bf16 or float32")
    if name == "auto":
        # With emulated bfloat16, a step takes up to twenty times as long.
        return "bf16" if has_native_bfloat16(device) else "float32"
    return name


def training_options(
    steps: int, batch: int, learning_rate: float, optimizer: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options for data, output, recipe and machine, with the stage's own defaults.

    The command receives them as one `Run`, after a check that the libraries for training are installed.
    """
    options = [
        click.option(
            "--data", type=PATH, required=True, help="Folder with train/MODALITY-MRI/{MRI,MODALITY}/NAME.png."
        ),
        click.option("--out", type=PATH, required=True, help="Folder of the run, for checkpoint and result."),
        click.option("--init", type=PATH, help="Weights of an earlier run to start from."),
        click.option("--steps", default=steps, type=click.IntRange(1), help="Steps of the whole run."),
        click.option(
            "--batch", default=batch, type=click.IntRange(1), help="Pairs of crops per step, over all processes."
        ),
        click.option("--crop", default=64, type=Crop(64), help="Side of the square crops in pixels; a multiple of 16."),
        click.option("--learning-rate", default=learning_rate, type=Positive(), help="Peak rate; decays over --steps."),
        click.option(
            "--optimizer",
            default=optimizer,
            type=click.Choice(["adamw", "muon"]),
            help="muon learns more per step; its steps take a little longer.",
        ),
        click.option(
            "--ema",
            default=0.999,
            type=click.FloatRange(0, 1, max_open=True),
            help="Decay of the weights' moving average.",
        ),
        click.option(
            "--seed", default=0, type=click.IntRange(0, 2**31 - 1), help="Seed of initial weights and random draws."
        ),
        click.option("--minutes", type=Positive(), help="Stop after this time; the same command continues."),
        click.option("--validate-every", default=2000, type=click.IntRange(1), help="Steps between validations."),
        click.option(
            "--precision",
            default="auto",
            type=click.Choice(["auto", *get_args(TrainingPrecision)]),
            help="bfloat16 autocast, or float32 with or without a GPU's TF32; auto is bf16 where it is native.",
        ),
        click.option(
            "--compile/--eager", "compiled", default=False, help="Use torch.compile (a CPU needs a C++ compiler)."
        ),
        click.option(
            "--device",
            default="auto",
            type=click.Choice(["auto", "cpu", "cuda"]),
            help="auto is cuda if there is a GPU. For several GPUs, use torchrun or accelerate launch.",
        ),
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(**arguments: Any) -> Any:
            recipe = Recipe(**{name: arguments.pop(name) for name in RECIPE})
            for module in LIBRARIES:
                require(module, extra="train")
            machine = {name: arguments.pop(name) for name in MACHINE}
            machine["device"] = _device(machine["device"])
            machine["precision"] = _precision(machine["precision"], machine["device"])
            run = Run(recipe=recipe, **machine)
            return function(run, **arguments)

        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate
