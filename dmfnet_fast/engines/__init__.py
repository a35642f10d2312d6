"""Engines run the network. Each module holds one kind; `open_engine` picks it by the suffix of the file (`kinds`)."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from dmfnet_fast.engines.base import Engine
from dmfnet_fast.engines.devices import check_device
from dmfnet_fast.engines.kinds import ENGINE_KINDS, TORCH, device_kind, kind_of
from dmfnet_fast.errors import EngineError, MissingExtraError
from dmfnet_fast.precision import PrecisionChoice
from dmfnet_fast.wording import alternatives

__all__ = ["DEFAULT", "SHIPPED_WEIGHTS", "Engine", "open_engine", "shipped", "shipped_engine"]

# Holds every network as weights for PyTorch, as .onnx for OpenVINO, and as .onnx to build TensorRT engines from.
WEIGHTS = Path(__file__).parent.parent / "weights"
DEFAULT = "nano"
SHIPPED_WEIGHTS = WEIGHTS / f"dmfnet-{DEFAULT}{TORCH.suffix}"


def shipped() -> dict[str, Path]:
    """The weights files that ship with the package, by network name."""
    return {path.stem.removeprefix("dmfnet-"): path for path in sorted(WEIGHTS.glob(f"dmfnet-*{TORCH.suffix}"))}


def shipped_engine(name: str, device: str | None) -> Path:
    """The file of a shipped network for the fastest installed library: on a CPU, OpenVINO before PyTorch.

    Args:
        name: a key of `shipped`.
        device: "cpu", "cuda" or "cuda:N"; None means the CPU.

    Raises:
        EngineError: `device` is none of these.
        MissingExtraError: no library that runs the network on this device is installed.
    """
    device = device or "cpu"
    check_device(device)
    extras = []
    for kind in ENGINE_KINDS:
        file, support = shipped()[name].with_suffix(kind.suffix), kind.support.get(device_kind(device))
        if support is None or not file.exists():
            continue
        if any(find_spec(module) is not None for module in kind.modules):
            return file
        extras.append(f"'dmfnet-fast[{support.extra}]'")
    raise MissingExtraError(f"no library that runs {name} on {device} is installed: pip install {alternatives(extras)}")


def open_engine(path: Path, device: str | None, precision: PrecisionChoice, threads: int | None) -> Engine:
    """Open the engine file `path`.

    Args:
        device: "cpu", "cuda" or "cuda:N"; None means the default of this kind of file.
        precision: precision of the arithmetic; "auto" lets the engine choose one for the device.
        threads: number of CPU threads; None keeps the engine's default.

    Raises:
        EngineError: the file is missing, damaged, not an engine, or not for this machine.
        MissingExtraError: the library that runs it is not installed.
    """
    if not path.exists():
        raise EngineError(f"{path}: no such engine file, and no shipped network ({', '.join(shipped())})")
    if path.is_dir():
        raise EngineError(f"{path}: is a folder, not an engine file")
    if not os.access(path, os.R_OK):
        raise EngineError(f"{path}: cannot be read: permission denied")
    return kind_of(path).open(path, device, precision, threads)
