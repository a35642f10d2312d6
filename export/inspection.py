"""Descriptions of exported files from their own metadata: weights, ONNX models and engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dmfnet_fast.engines.kinds import kind_of
from dmfnet_fast.errors import EngineError


def describe(path: Path) -> Iterator[str]:
    """Yield lines that describe the file `path`.

    Raises:
        EngineError: the file is missing, damaged or not of a known kind.
    """
    if not path.is_file():
        raise EngineError(f"{path}: is a folder" if path.is_dir() else f"{path}: no such file")
    return kind_of(path).load().describe(path)
