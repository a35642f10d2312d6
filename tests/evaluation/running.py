"""`dmfnet-eval` as a test runs it, and what it made."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result

from dmfnet_fast.commands.eval import main

MODALITIES = ("CT-MRI", "PET-MRI", "SPECT-MRI")


def run(*arguments: Any) -> Result:
    """In this process, with metrics too."""
    return CliRunner().invoke(main, [*map(str, arguments), "--workers", "1"])
