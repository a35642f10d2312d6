"""Stage II: train a fusion network. `python -m train.stage2 --data DIR --denoiser FILE --out RUN`."""

from __future__ import annotations

from pathlib import Path

import click

from dmfnet_fast.commands.shared import PATH, command
from dmfnet_fast.config import PRESETS
from train.options import report, training_options
from train.recipe import DEFAULT_LOSS, LOSS_NAMES, Run


@command()
@training_options(steps=20_000, batch=16, learning_rate=5e-4, optimizer="muon")
@click.option("--denoiser", type=PATH, help="The denoiser from stage I, if not that of --init.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="A student such as nano, or what to convert weights of other timesteps or fewer channels to.",
)
@click.option("--unfreeze", is_flag=True, help="Train the denoiser's up-path too, at the end.")
@click.option(
    "--loss",
    type=click.Choice(LOSS_NAMES),
    default=DEFAULT_LOSS,
    help="What to train on: the hybrid loss with a term for specks, or without. Validation always has the hybrid one.",
)
def main(run: Run, denoiser: Path | None, preset: str | None, unfreeze: bool, loss: str) -> None:
    """Train the fusion network, or a student, on all pairs of DATA/train; write OUT/dmfnet.safetensors.

    The denoiser stays frozen without --unfreeze; a student (--preset nano) has none. Repeating the command continues an
    interrupted run.
    """
    from train.fusing import train_fusion

    report(run, train_fusion(run, denoiser, preset, unfreeze, loss), "dmfnet.safetensors")


if __name__ == "__main__":
    main()
