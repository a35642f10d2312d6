"""Stage I: train the denoiser. `python -m train.stage1 --data DIR --preset tiny --out RUN`."""

from __future__ import annotations

import click

from dmfnet_fast.commands.shared import command
from dmfnet_fast.config import DMFNET_PRESETS
from train.options import report, training_options
from train.recipe import Run


@command()
@training_options(steps=20_000, batch=16, learning_rate=1e-3, optimizer="adamw")
@click.option("--preset", default="tiny", type=click.Choice(list(DMFNET_PRESETS)), help="Size of the network.")
def main(run: Run, preset: str) -> None:
    """Train the denoiser on all images of DATA/train; write OUT/denoiser.safetensors.

    Repeating the command continues an interrupted run.
    """
    from train.denoising import train_denoiser

    report(run, train_denoiser(run, preset), "denoiser.safetensors")


if __name__ == "__main__":
    main()
