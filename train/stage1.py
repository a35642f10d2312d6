"""Stage I: train the denoiser. `python -m train.stage1 --data DIR --preset tiny --out RUN`."""

from __future__ import annotations

from pathlib import Path

import click

from dmfnet_fast.commands.shared import command
from train.options import require_training, training_options


@command()
@training_options(steps=20_000, batch=32, learning_rate=1e-3)
@click.option("--preset", "preset_name", default="tiny", type=click.Choice(["base", "small", "tiny"]), help="Size.")
def main(
    data: Path,
    out: Path,
    preset_name: str,
    minutes: float | None,
    bf16: bool,
    compiled: bool,
    device: str,
    **settings: float,
) -> None:
    """Train the denoiser on all images of DATA/train; write OUT/denoiser.safetensors.

    The same command again continues an interrupted run.
    """  # fmt: skip
    require_training()
    from train.denoising import train_denoiser

    train_denoiser(data, out, preset_name, settings, minutes, bf16, compiled, device)


if __name__ == "__main__":
    main()
