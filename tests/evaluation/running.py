"""Runs `dmfnet-eval` in tests."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result

from dmfnet_fast.commands.eval import main

MODALITIES = ("CT-MRI", "PET-MRI", "SPECT-MRI")


def run(*arguments: Any) -> Result:
    """Run `dmfnet-eval` in this process, metrics included."""
    return CliRunner().invoke(main, [*map(str, arguments), "--workers", "1"])
