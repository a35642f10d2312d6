"""`dmfnet-export`, found even where another distribution owns the name of the package that does it."""

from __future__ import annotations

import importlib
import sys

import click

from dmfnet_fast.commands.shared import FAILED


def main() -> None:
    """Run the command in `export.command`; a foreign package of that name is one clear error."""
    package = importlib.import_module("export")
    if getattr(package, "DISTRIBUTION", None) != "dmfnet-fast":
        click.echo(
            f"error: {package.__file__ or list(package.__path__)}: this package named 'export' is found before "
            "dmfnet-fast's; remove it from PYTHONPATH and from the working folder, or uninstall it",
            err=True,
        )
        sys.exit(FAILED)
    importlib.import_module("export.command").main()
