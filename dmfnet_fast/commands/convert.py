"""`dmfnet-convert`: converts the published checkpoints to a weights file."""

from __future__ import annotations

from pathlib import Path

import click

from dmfnet_fast.commands.shared import PATH, command
from dmfnet_fast.engines.kinds import TORCH


@command()
@click.option("--denoiser", type=PATH, required=True, help="The denoiser: I630000_E14000_gen.pth.")
@click.option("--fusion", type=PATH, required=True, help="The fusion network: MIF.pth.")
@click.option("-o", "--output", type=PATH, required=True, help="Weights file to write, .safetensors.")
@click.version_option(package_name="dmfnet-fast")
def main(denoiser: Path, fusion: Path, output: Path) -> None:
    """Convert the two published DM-FNet checkpoints into one .safetensors weights file.

    Only plain tensors are read, and no code is run. The name and shape of every tensor are checked.
    """
    TORCH.check_output(output)
    from dmfnet_fast.model import save_model
    from dmfnet_fast.model.convert import convert_checkpoints

    model = convert_checkpoints(denoiser, fusion)
    save_model(model, output)
    parameters = sum(p.numel() for p in model.parameters())
    click.echo(f"{output}: base, {parameters:,} parameters")


if __name__ == "__main__":
    main()
