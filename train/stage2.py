"""Stage II: train a fusion network. `python -m train.stage2 --data DIR --denoiser FILE --out RUN`."""

from __future__ import annotations

from pathlib import Path

import click

from dmfnet_fast.commands.shared import command
from dmfnet_fast.config import PRESETS
from train.options import report, training_options
from train.recipe import Run


@command()
@training_options(steps=20_000, batch=16, learning_rate=5e-4, optimizer="muon")
@click.option("--denoiser", type=click.Path(path_type=Path), help="The denoiser from stage I, if not that of --init.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="A student such as nano, or what to convert weights of other timesteps or fewer channels to.",
)
@click.option("--unfreeze", is_flag=True, help="Also train the denoiser's up-path, in the last part of training.")
def main(run: Run, denoiser: Path | None, preset: str | None, unfreeze: bool) -> None:
    """Train the fusion network, or a student, on all pairs of DATA/train; write OUT/dmfnet.safetensors.

    The denoiser stays frozen without --unfreeze; a student (--preset nano) has none. Repeating the command continues an
    interrupted run.
    """
    from train.fusing import train_fusion

    report(run, train_fusion(run, denoiser, preset, unfreeze), "dmfnet.safetensors")


if __name__ == "__main__":
    main()
