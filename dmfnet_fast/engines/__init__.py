"""Engines: what runs the network. One kind a file; all are opened here, by the kind of their file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dmfnet_fast.engines.base import Engine, Precision
from dmfnet_fast.engines.devices import check_device
from dmfnet_fast.errors import EngineError, MissingExtraError
from dmfnet_fast.images.formats import READERS, suffixes

__all__ = ["DEFAULT", "SHIPPED_WEIGHTS", "Engine", "Precision", "open_engine", "shipped", "shipped_engine"]

# Every network as weights for PyTorch, as .onnx for OpenVINO, and as .onnx to build TensorRT engines from.
WEIGHTS = Path(__file__).parent.parent / "weights"
DEFAULT = "nano"
SHIPPED_WEIGHTS = WEIGHTS / f"dmfnet-{DEFAULT}.safetensors"
_IMAGE_SUFFIXES = {*suffixes(READERS), ".gif", ".webp"}


def shipped() -> dict[str, Path]:
    """The weights files that come with the package, by the names of their networks."""
    return {path.stem.removeprefix("dmfnet-"): path for path in sorted(WEIGHTS.glob("dmfnet-*.safetensors"))}


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
    weights = shipped()[name]
    graph = weights.with_suffix(".onnx")
    if device == "cpu" and find_spec("openvino") is not None:
        return graph
    if find_spec("torch") is not None:
        return weights
    extras = "'dmfnet-fast[cpu]' or 'dmfnet-fast[torch]'" if device == "cpu" else "'dmfnet-fast[gpu]'"
    raise MissingExtraError(f"no library that runs {name} on {device} is installed: pip install {extras}")


def open_engine(path: Path, device: str | None, precision: Precision, threads: int | None) -> Engine:
    """Open the engine file `path`.

    Args:
        device: "cpu", "cuda" or "cuda:N"; None is the GPU for an .engine file, else the CPU.
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
    suffix = path.suffix.lower()
    if suffix == ".engine":
        from dmfnet_fast.engines.tensorrt import TensorRTEngine

        return TensorRTEngine(path, device or "cuda", precision, threads)
    device = device or "cpu"
    if suffix == ".safetensors":
        from dmfnet_fast.engines.torch_engine import TorchEngine

        return TorchEngine(path, device, precision, threads)
    if suffix == ".onnx":
        from dmfnet_fast.engines.openvino_engine import OpenVINOEngine, cache_folder

        return OpenVINOEngine(path, device, precision, threads, cache_folder())
    kinds = "an engine is a .engine, .onnx or .safetensors file"
    if suffix in (".pth", ".pt", ".ckpt"):
        raise EngineError(f"{path}: is a torch checkpoint; dmfnet-convert makes a .safetensors engine of it")
    if suffix in _IMAGE_SUFFIXES:
        raise EngineError(f"{path}: is an image, not an engine; {kinds}")
    raise EngineError(f"{path}: unknown kind of engine {suffix!r}; {kinds}")
