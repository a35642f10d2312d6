"""`dmfnet-export`, found even where another distribution owns the name of the package that does it."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from dmfnet_fast.commands.shared import FAILED

OURS = Path(__file__).parents[2] / "export"  # installed, or in a checkout: beside this package


def main() -> None:
    """Run the command in `export.command`; a foreign package of that name is one clear error."""
    found = find_spec("export")
    where = Path(found.origin).parent if found and found.origin else None
    if where is None or where.resolve() != OURS.resolve():
        click.echo(
            f"error: {where or 'export'}: a package named 'export' that is not dmfnet-fast's is found first; "
            "remove it from PYTHONPATH and from the working folder, or uninstall it",
            err=True,
        )
        sys.exit(FAILED)
    import_module("export.command").main()
