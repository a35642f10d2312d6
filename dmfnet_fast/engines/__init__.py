"""Engines: what runs the network. One kind a file; all are opened here, by the kind of their file."""

from __future__ import annotations

from pathlib import Path

from dmfnet_fast.engines.base import Engine
from dmfnet_fast.errors import EngineError

__all__ = ["Engine", "open_engine"]

_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"}


def open_engine(path: Path, device: str, threads: int | None) -> Engine:
    """Open the engine file `path`.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads; None leaves the engine's default.

    Raises:
        EngineError: the file is missing, of a kind that is no engine, damaged, or not for this machine.
        MissingExtraError: the library that runs it is not installed.
    """
    if not path.exists():
        raise EngineError(f"{path}: no such engine file")
    if path.is_dir():
        raise EngineError(f"{path}: is a folder, not an engine file")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from dmfnet_fast.engines.torch_engine import TorchEngine

        return TorchEngine(path, device, threads)
    if suffix in (".pth", ".pt", ".ckpt"):
        raise EngineError(f"{path}: is a torch checkpoint; dmfnet-convert makes a .safetensors engine of it")
    if suffix in _PICTURES:
        raise EngineError(f"{path}: is a picture, not an engine; an engine is a .safetensors file")
    raise EngineError(f"{path}: unknown kind of engine {suffix!r}; an engine is a .safetensors file")
