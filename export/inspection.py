"""What a file of ours says of itself: weights, ONNX models, engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dmfnet_fast.engines.kinds import kind_of
from dmfnet_fast.errors import EngineError


def describe(path: Path) -> Iterator[str]:
    """Lines on the file `path`.

    Raises:
        EngineError: it is none of ours, or damaged.
    """
    if not path.is_file():
        raise EngineError(f"{path}: is a folder" if path.is_dir() else f"{path}: no such file")
    return kind_of(path).load().describe(path)
