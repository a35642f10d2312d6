"""Builds engines from ONNX models with TensorRT or TensorRT-RTX; `_BUILDERS` holds what differs between the two."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.artifacts.parity import Shape
from dmfnet_fast.engines.tensorrt import FLAVOURS
from dmfnet_fast.errors import (
    EngineError,
    MissingExtraError,
    OutOfMemoryError,
    OutputError,
    is_lack_of_memory,
    require,
    warn,
)
from export.tensorrt.layers import Layer, layers_of_inspector, layers_of_log

_LAYER = "LayerType: "


@dataclass(frozen=True)
class Profile:
    """The batches and sizes that an engine accepts: from `min` to `max`, fastest at `opt`; each is (N, H, W)."""

    min: Shape
    opt: Shape
    max: Shape

    def __contains__(self, shape: object) -> bool:
        assert isinstance(shape, tuple)
        return all(low <= n <= high for low, n, high in zip(self.min, shape, self.max, strict=True))

    def __str__(self) -> str:
        def words(shape: Shape) -> str:
            return f"{shape[1]}x{shape[2]}"

        sizes = words(self.opt) if self.min[1:] == self.max[1:] else f"{words(self.min)} to {words(self.max)}"
        pairs = f"{self.max[0]} pairs" if self.min[0] == self.max[0] else f"{self.min[0]} to {self.max[0]} pairs"
        return f"{sizes}, {'one pair' if self.max[0] == 1 else pairs}"


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Attributes:
        engine: the serialized engine.
        layers: layers of the engine.
        seconds: duration of the build.
    """

    engine: bytes
    layers: list[Layer]
    seconds: float


def require_builder(flavour: str) -> Any:
    """The module that builds engines of a flavour, a key of FLAVOURS.

    Raises:
        MissingExtraError: the module or its builder is not installed; the message says how to install it.
    """
    module = require(FLAVOURS[flavour].module, extra=flavour, hint=_BUILDERS[flavour].where_from)
    if not hasattr(module, "Builder"):  # only type stubs or the lean runtime are installed
        raise MissingExtraError(
            f"{FLAVOURS[flavour].module} is installed without its builder: pip install 'dmfnet-fast[{flavour}]'"
            f"{_BUILDERS[flavour].where_from}"
        )
    return module


def known_gpus() -> list[str]:
    """The architectures that the installed TensorRT-RTX builds for, "sm_89" and so on."""
    trt = require_builder("tensorrt-rtx")
    names = sorted(trt.ComputeCapability.__members__, key=lambda name: (len(name), name))
    return [name.replace("SM", "sm_") for name in names if name.startswith("SM")]


def capability(gpu: str) -> str:
    """Convert the name of an architecture to its compute capability: "sm_89" to "8.9"."""
    digits = gpu.removeprefix("sm_")
    return f"{digits[:-1]}.{digits[-1]}"


def _logger(trt: Any) -> Any:
    """A logger that collects error messages and the lines that list layers."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.layers: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif _LAYER in message:
                self.layers.extend(line for line in message.splitlines() if _LAYER in line)

    return Logger()


class _Interruptions:
    """Records SIGINT and SIGTERM during a build, and raises the signal again on exit.

    TensorRT would swallow and only log an exception, such as KeyboardInterrupt, that is raised in one of its callbacks.
    """

    def __init__(self) -> None:
        self.came: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interruptions:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        self.came = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.came is not None:
            signal.raise_signal(self.came)


def _monitor(trt: Any, report: Callable[[float], None], interruptions: _Interruptions) -> Any:
    """A monitor that reports the progress of the outermost phase, 0 to 1, and stops the build after a signal."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outermost: tuple[str, int] | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self.outermost = phase_name, num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self.outermost is not None and phase_name == self.outermost[0]:
                report((step + 1) / max(1, self.outermost[1]))
            return interruptions.came is None

        def phase_finish(self, phase_name: str) -> None:
            """Nothing to do: progress is reported by steps."""

    return Monitor()


def _why(errors: list[str]) -> str:
    """The last of TensorRT's errors on one line, without the locations in its sources."""
    words = re.sub(r"\s*\(?In \w+ at \S+\)?", "", errors[-1] if errors else "it does not say why")
    return " ".join(words.split())


def _check(result: Any, what: str, errors: list[str]) -> Any:
    if not result:
        why = _why(errors)
        if is_lack_of_memory(RuntimeError(why)):
            raise OutOfMemoryError(f"out of memory: {what}: {why}; use a smaller --max, --batch or preset")
        raise EngineError(f"{what}: {why}")
    return result


def build(
    content: bytes,
    flavour: str,
    profile: Profile,
    gpus: list[str],
    timing_cache: Path | None,
    report: Callable[[float], None],
) -> Built:
    """Build an engine.

    Args:
        content: a serialized ONNX model; the engine has its precision.
        flavour: the builder, a key of FLAVOURS.
        profile: batches and sizes of the inputs.
        gpus: for TensorRT-RTX, the architectures to build for, such as "sm_89".
        timing_cache: for TensorRT, a file of measurements that shortens builds; read if it exists, and written. None
            for none.
        report: callback for the progress, 0 to 1.

    Raises:
        EngineError: the builder rejects the model, needs a GPU that is not there, or cannot use the timing cache.
        MissingExtraError: the builder is not installed.
        OutOfMemoryError: the build needs more memory than there is.
    """
    trt: Any = require_builder(flavour)
    name = f"{FLAVOURS[flavour].module} {trt.__version__}"
    logger = _logger(trt)
    started = time.perf_counter()
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # without a driver, pybind11 raises exceptions with no common base class
        raise EngineError(
            f"{name} cannot start: {_why([*logger.errors, str(error)][:1])}; it builds on the GPU that the engine is "
            "for: check the driver, or use --target tensorrt-rtx, which builds without a GPU"
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = [parser.get_error(n).desc() for n in range(parser.num_errors)]
        raise EngineError(f"{name} cannot read the ONNX model: {_why(errors or logger.errors)}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # makes the inspector report the layers' types
    config.clear_flag(trt.BuilderFlag.TF32)
    shapes = builder.create_optimization_profile()
    for given in (network.get_input(n) for n in range(network.num_inputs)):
        corners = [
            (given.shape[0] if given.name == "noise" else pairs, given.shape[1], height, width)
            for pairs, height, width in (profile.min, profile.opt, profile.max)
        ]
        shapes.set_shape(given.name, *corners)
    config.add_optimization_profile(shapes)
    _BUILDERS[flavour].configure(trt, config, gpus)
    if profile.min != profile.max and hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):
        # Each shape takes only the memory that it needs instead of that of the largest shape.
        config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    if timing_cache is not None:
        try:
            known = timing_cache.read_bytes() if timing_cache.exists() else b""
        except OSError as error:
            raise EngineError(f"{timing_cache}: cannot be read: {error.strerror or error}") from error
        cache = config.create_timing_cache(known)
        taken = cache is not None and config.set_timing_cache(cache, False)
        _check(taken, f"{timing_cache}: is no timing cache of {name} and this GPU; remove it", logger.errors)
    with _Interruptions() as interruptions:
        # The local variable keeps the monitor alive, which the configuration does not.
        config.progress_monitor = monitor = _monitor(trt, report, interruptions)
        serialized = builder.build_serialized_network(network, config)
        del monitor
    engine = bytes(_check(serialized, f"{name} cannot build", logger.errors))
    seconds = time.perf_counter() - started
    if timing_cache is not None:
        try:
            with replacing(timing_cache) as temporary:
                temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        except OutputError as error:
            warn(f"{error}; the engine is none the worse")
    return Built(engine, _BUILDERS[flavour].layers(trt, logger, engine), seconds)


def _inspected(trt: Any, logger: Any, engine: bytes) -> list[Layer]:
    opened = _check(trt.Runtime(logger).deserialize_cuda_engine(engine), "the engine cannot be opened", logger.errors)
    inspector = opened.create_engine_inspector()
    return layers_of_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _logged(_: Any, logger: Any, __: bytes) -> list[Layer]:
    return layers_of_log(logger.layers)


def _for_this_gpu(_: Any, __: Any, ___: list[str]) -> None:
    """Nothing to configure: TensorRT builds for the GPU that it runs on."""


def _for_gpus(trt: Any, config: Any, gpus: list[str]) -> None:
    # Memory that the runtime allocates itself cannot be captured in a CUDA graph.
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    config.num_compute_capabilities = len(gpus)
    for n, gpu in enumerate(gpus):
        config.set_compute_capability(getattr(trt.ComputeCapability, gpu.replace("sm_", "SM")), n)


@dataclass(frozen=True)
class _Builder:
    """The steps of a build that are specific to one of the two libraries.

    Attributes:
        where_from: hint on how to install the library, appended to error messages.
        configure: sets the library's own options, given the module, the builder configuration and the GPUs.
        layers: lists the layers of an engine, given the module, the builder's logger and the serialized engine.
    """

    where_from: str
    configure: Callable[[Any, Any, list[str]], None]
    layers: Callable[[Any, Any, bytes], list[Layer]]


_BUILDERS = {
    "tensorrt": _Builder(
        "; on a Jetson it comes with JetPack (apt install python3-libnvinfer, and a virtual environment made with "
        "--system-site-packages); without it, --target tensorrt-rtx builds for RTX GPUs and --target onnx for CPUs",
        _for_this_gpu,
        _inspected,
    ),
    "tensorrt-rtx": _Builder(
        "; it is for x86-64 Linux and Windows; without it, --target tensorrt builds for other GPUs and --target onnx "
        "for CPUs",
        _for_gpus,
        _logged,
    ),
}
