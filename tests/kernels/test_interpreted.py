"""Runs interpreted.py: in Triton's interpreter in a process of its own, as kernels imported for it cannot compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_in_the_interpreter() -> None:
    file = Path(__file__).with_name("interpreted.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-5_000:]
    assert " passed" in result.stdout
