"""Converts trained weights for release: `python -m train.release RUN/dmfnet.safetensors -o FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from dmfnet_fast.commands.shared import PATH, command
from dmfnet_fast.engines.kinds import TORCH
from dmfnet_fast.errors import OutputError, require, warn


@command()
@click.argument("weights", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="File to write (.safetensors).")
def main(weights: Path, output: Path) -> None:
    """Round WEIGHTS of stage II to float16, which halves the file, keep their record, and print the file's hash."""
    require("torch", extra="torch")
    import torch

    from dmfnet_fast.model import load_model, save_model
    from dmfnet_fast.model.weights import read_metadata

    TORCH.check_output(output)
    if output.exists() and output.samefile(weights):
        raise OutputError(f"{output}: holds the weights themselves; name another file")
    model = load_model(weights)
    run = model.record.get("stage2", {})
    if run.get("steps_done", 0) < run.get("steps", 0):
        warn(f"{weights}: training stopped at step {run.get('steps_done', 0)} of {run['steps']}")
    save_model(model, output, torch.float16)
    click.echo(f"{output}: {read_metadata(output)['sha256']}")


if __name__ == "__main__":
    main()
