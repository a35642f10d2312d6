"""Engines: what runs the network. One kind a file; all are opened here, by the kind of their file (`kinds`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dmfnet_fast.engines.base import Engine
from dmfnet_fast.engines.devices import check_device
from dmfnet_fast.engines.kinds import ENGINE_KINDS, TORCH, device_kind, kind_of
from dmfnet_fast.errors import EngineError, MissingExtraError
from dmfnet_fast.precision import PrecisionChoice
from dmfnet_fast.wording import alternatives

__all__ = ["DEFAULT", "SHIPPED_WEIGHTS", "Engine", "open_engine", "shipped", "shipped_engine"]

# Every network as weights for PyTorch, as .onnx for OpenVINO, and as .onnx to build TensorRT engines from.
WEIGHTS = Path(__file__).parent.parent / "weights"
DEFAULT = "nano"
SHIPPED_WEIGHTS = WEIGHTS / f"dmfnet-{DEFAULT}{TORCH.suffix}"


def shipped() -> dict[str, Path]:
    """The weights files that come with the package, by the names of their networks."""
    return {path.stem.removeprefix("dmfnet-"): path for path in sorted(WEIGHTS.glob(f"dmfnet-*{TORCH.suffix}"))}


def shipped_engine(name: str, device: str | None) -> Path:
    """The file of a shipped network for the fastest library installed: on a CPU OpenVINO, then PyTorch.

    Args:
        name: see `shipped`.
        device: None means the CPU.

    Raises:
        EngineError: there is no such device.
        MissingExtraError: no library that runs there is installed.
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
        device: "cpu", "cuda" or "cuda:N"; None is the default of the file's kind.
        precision: of the arithmetic; "auto" is the engine's choice for the device.
        threads: CPU threads; None leaves the engine's default.

    Raises:
        EngineError: the file is missing, of a kind that is no engine, damaged, or not for this machine.
        MissingExtraError: the library that runs it is not installed.
    """
    if not path.exists():
        raise EngineError(f"{path}: no such engine file, and no shipped network ({', '.join(shipped())})")
    if path.is_dir():
        raise EngineError(f"{path}: is a folder, not an engine file")
    return kind_of(path).open(path, device, precision, threads)
