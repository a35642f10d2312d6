"""Entry point of `dmfnet-export`: gives a clear error if another distribution's package `export` is found first."""

from __future__ import annotations

import sys

import click

from dmfnet_fast.commands.shared import FAILED
from dmfnet_fast.errors import MissingExtraError
from dmfnet_fast.siblings import check_ours


def main() -> None:
    """Run `export.command.main`, after a check that `export` is this project's package."""
    try:
        check_ours("export")
    except MissingExtraError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(FAILED)
    from export.command import main as command

    command()


if __name__ == "__main__":
    main()
