"""`dmfnet-export`, found even where another distribution owns the name of the package that does it."""

from __future__ import annotations

import sys

import click

from dmfnet_fast.commands.shared import FAILED
from dmfnet_fast.errors import MissingExtraError
from dmfnet_fast.siblings import check_ours


def main() -> None:
    """Run the command in `export.command`; a foreign package of that name is one clear error."""
    try:
        check_ours("export")
    except MissingExtraError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(FAILED)
    from export.command import main as command

    command()
