"""Table of the kinds of engine files. Everything that opens, checks or lists engines reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from dmfnet_fast.engines.base import Engine
from dmfnet_fast.engines.devices import check_device
from dmfnet_fast.errors import EngineError, OutputError
from dmfnet_fast.images.formats import READERS, suffixes
from dmfnet_fast.precision import FLOAT_PRECISIONS, Precision, PrecisionChoice
from dmfnet_fast.wording import alternatives, with_article

DeviceKind: TypeAlias = Literal["cpu", "cuda"]

_CHECKPOINTS = (".pth", ".pt", ".ckpt")
_IMAGES = (*suffixes(READERS), ".gif", ".webp")
_WHERE: dict[DeviceKind, str] = {"cpu": "the CPU", "cuda": "NVIDIA GPUs"}
_ON: dict[DeviceKind, str] = {"cpu": "on a CPU", "cuda": "on a GPU"}


@dataclass(frozen=True)
class Support:
    """What an engine supports on one kind of device.

    Attributes:
        precisions: supported precisions. A file or a machine may support fewer, which the engine reports when it is
            opened.
        extra: extra of this package that installs the libraries.
    """

    precisions: tuple[Precision, ...]
    extra: str


class EngineFunctions(NamedTuple):
    """Entry points of an engine's module.

    Attributes:
        open: creates an engine from a file, a device, a precision and a number of CPU threads. `EngineKind.open` has
            already checked the device and the precision. Raises the same errors as `open_engine`.
        describe: yields the lines that `dmfnet-export --inspect` prints for a file; raises an EngineError if the file
            is damaged.
    """

    open: Callable[[Path, str, PrecisionChoice, int | None], Engine]
    describe: Callable[[Path], Iterator[str]]


@dataclass(frozen=True)
class EngineKind:
    """One kind of engine file.

    Attributes:
        suffix: suffix of the files, in lower case, with the dot.
        library: name of the library that runs them, for messages.
        modules: Python modules that provide the library; one of them is enough.
        support: what is supported on each kind of device, the default one first.
        load: imports the engine's module and returns its entry points.
    """

    suffix: str
    library: str
    modules: tuple[str, ...]
    support: Mapping[DeviceKind, Support]
    load: Callable[[], EngineFunctions]

    @property
    def default_device(self) -> DeviceKind:
        """The kind of device that is used if none is given."""
        return next(iter(self.support))

    def open(self, path: Path, device: str | None, precision: PrecisionChoice, threads: int | None) -> Engine:
        """Open a file of this kind; see `dmfnet_fast.engines.open_engine`."""
        device = device or self.default_device
        check_device(device)
        place = device_kind(device)
        if place not in self.support:
            raise EngineError(
                f"{path}: {self.suffix} files run on {alternatives(_WHERE[k] for k in self.support)}, not on "
                f"{device!r}; there use {files(kind for kind in ENGINE_KINDS if place in kind.support)}"
            )
        known = self.support[place].precisions
        if precision != "auto" and precision not in known:
            others = [k for k in ENGINE_KINDS if place in k.support and precision in k.support[place].precisions]
            raise EngineError(
                f"{path}: precision {precision!r}: {_ON[place]} use {alternatives(('auto', *known))}"
                + (f", or {files(others)} of that precision, which dmfnet-export makes" if others else "")
            )
        return self.load().open(path, device, precision, threads)

    def check_output(self, path: Path) -> None:
        """Raise an OutputError unless the name of an output file has the suffix of this kind."""
        if path.suffix.lower() != self.suffix:
            raise OutputError(f"{path}: name {with_article(self.suffix)} file")


def _tensorrt() -> EngineFunctions:
    from dmfnet_fast.engines.tensorrt import TensorRTEngine, describe

    return EngineFunctions(TensorRTEngine, describe)


def _openvino() -> EngineFunctions:
    from dmfnet_fast.engines.openvino_engine import describe, open_cached

    return EngineFunctions(open_cached, describe)


def _torch() -> EngineFunctions:
    from dmfnet_fast.engines.torch_engine import TorchEngine, describe

    return EngineFunctions(TorchEngine, describe)


TENSORRT = EngineKind(
    ".engine", "TensorRT", ("tensorrt", "tensorrt_rtx"), {"cuda": Support(FLOAT_PRECISIONS, "tensorrt")}, _tensorrt
)
OPENVINO = EngineKind(
    ".onnx", "OpenVINO", ("openvino",), {"cpu": Support(("float32", "bfloat16", "int8"), "cpu")}, _openvino
)
TORCH = EngineKind(
    ".safetensors",
    "PyTorch",
    ("torch",),
    {"cpu": Support(("float32", "bfloat16"), "torch"), "cuda": Support(FLOAT_PRECISIONS, "gpu")},
    _torch,
)
# For each device, the fastest kind comes first.
ENGINE_KINDS = (TENSORRT, OPENVINO, TORCH)


def device_kind(device: str) -> DeviceKind:
    """The kind of a device whose name `check_device` accepts."""
    return "cpu" if device == "cpu" else "cuda"


def files(kinds: Iterable[EngineKind] | None = None) -> str:
    """Names the files of some kinds, by default of all: "an .engine, .onnx or .safetensors file"."""
    return with_article(f"{alternatives(kind.suffix for kind in kinds or ENGINE_KINDS)} file")


def files_and_libraries() -> str:
    """Names all suffixes and libraries: ".engine (TensorRT), .onnx (OpenVINO) or .safetensors (PyTorch)"."""
    return alternatives(f"{kind.suffix} ({kind.library})" for kind in ENGINE_KINDS)


def default_devices() -> str:
    """Names the default devices: "cuda for an .engine file, cpu for an .onnx or .safetensors file"."""
    devices = dict.fromkeys(kind.default_device for kind in ENGINE_KINDS)
    return ", ".join(
        f"{device} for {files(kind for kind in ENGINE_KINDS if kind.default_device == device)}" for device in devices
    )


def refuse_checkpoint(path: Path) -> None:
    """Raise an EngineError if a file has the suffix of a torch checkpoint."""
    if path.suffix.lower() in _CHECKPOINTS:
        raise EngineError(f"{path}: is a torch checkpoint; dmfnet-convert makes {files([TORCH])} of it")


def kind_of(path: Path) -> EngineKind:
    """The kind of an engine file, by its suffix.

    Raises:
        EngineError: no kind of engine has this suffix.
    """
    suffix = path.suffix.lower()
    for kind in ENGINE_KINDS:
        if suffix == kind.suffix:
            return kind
    refuse_checkpoint(path)
    what = "is an image, not an engine" if suffix in _IMAGES else f"unknown kind of engine {suffix!r}"
    raise EngineError(f"{path}: {what}; an engine is {files()}")
