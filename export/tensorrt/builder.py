"""Builds engines from ONNX models with TensorRT or TensorRT-RTX; `_BUILDERS` holds what differs between the two."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.artifacts.onnx_metadata import has_functions
from dmfnet_fast.artifacts.parity import Shape
from dmfnet_fast.engines.tensorrt import FLAVOURS
from dmfnet_fast.engines.tensorrt_log import Log, logger, one_line
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


def _corner(declared: tuple[int, ...], shape: Shape) -> tuple[int, ...]:
    """The shape of an input for a batch and a size: they replace the -1s of the shape that the graph declares.

    Height and width come together, with the batch or, for the noise, without it.
    """
    open_sizes = sum(size < 0 for size in declared)
    sizes = iter(shape[1:] if open_sizes == 2 else shape)
    return tuple(next(sizes) if size < 0 else size for size in declared)


def _check(result: Any, what: str, log: Log) -> Any:
    if not result:
        why, warned = log.take()
        if is_lack_of_memory(RuntimeError(why)):
            raise OutOfMemoryError(f"out of memory: {what}: {why}; use a smaller --max, --batch or preset")
        raise EngineError(f"{what}: {why}{warned}")
    return result


def build(
    content: bytes,
    flavour: str,
    profile: Profile,
    gpus: list[str],
    timing_cache: Path | None,
    workspace: int | None,
    report: Callable[[float], None],
) -> Built:
    """Build an engine.

    Args:
        content: a serialized ONNX model without functions of its own; the engine has its precision.
        flavour: the builder, a key of FLAVOURS.
        profile: batches and sizes of the inputs.
        gpus: for TensorRT-RTX, the architectures to build for, such as "sm_89".
        timing_cache: for TensorRT, a file of measurements that shortens builds; read if it exists, and written. None
            for none.
        workspace: most bytes of scratch memory that a layer may take, None for all of the GPU's memory.
        report: callback for the progress, 0 to 1.

    Raises:
        EngineError: the builder rejects the model, needs a GPU that is not there, or cannot use the timing cache.
        MissingExtraError: the builder is not installed.
        OutOfMemoryError: the build needs more memory than there is.
    """
    trt: Any = require_builder(flavour)
    name = f"{FLAVOURS[flavour].module} {trt.__version__}"
    if has_functions(content):
        raise EngineError(
            "the graph has functions, which TensorRT 10.3 misreads, so another version exported it: export it again"
        )
    log, layers = Log(), list[str]()
    messages = logger(trt, log, lambda message: layers.extend(line for line in message.splitlines() if _LAYER in line))
    started = time.perf_counter()
    try:
        builder = trt.Builder(messages)
    except Exception as error:  # without a driver, pybind11 raises exceptions with no common base class
        why = [*log.errors, one_line(str(error))][0]
        raise EngineError(
            f"{name} cannot start: {why}; it builds on the GPU that the engine is for: check the driver, or use "
            "--target tensorrt-rtx, which builds without a GPU"
        ) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, messages)
    parsed = parser.parse(content)
    log.errors += [one_line(parser.get_error(n).desc()) for n in range(parser.num_errors)]
    _check(parsed, f"{name} cannot read the ONNX model", log)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # makes the inspector report the layers' types
    config.clear_flag(trt.BuilderFlag.TF32)
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    shapes = builder.create_optimization_profile()
    for given in (network.get_input(n) for n in range(network.num_inputs)):
        corners = (_corner(tuple(given.shape), shape) for shape in (profile.min, profile.opt, profile.max))
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
        _check(taken, f"{timing_cache}: is no timing cache of {name} and this GPU; remove it", log)
    with _Interruptions() as interruptions:
        # The local variable keeps the monitor alive, which the configuration does not.
        config.progress_monitor = monitor = _monitor(trt, report, interruptions)
        serialized = builder.build_serialized_network(network, config)
        del monitor
    engine = bytes(_check(serialized, f"{name} cannot build", log))
    seconds = time.perf_counter() - started
    if timing_cache is not None:
        try:
            with replacing(timing_cache) as temporary:
                temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        except OutputError as error:
            warn(f"{error}; the engine is none the worse")
    return Built(engine, _BUILDERS[flavour].layers(trt, layers, engine), seconds)


def _inspected(trt: Any, _: list[str], engine: bytes) -> list[Layer]:
    log = Log()
    messages = logger(trt, log)
    opened = _check(trt.Runtime(messages).deserialize_cuda_engine(engine), "the engine cannot be opened", log)
    inspector = opened.create_engine_inspector()
    return layers_of_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _logged(_: Any, lines: list[str], __: bytes) -> list[Layer]:
    return layers_of_log(lines)


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
        layers: lists the layers of an engine, given the module, what the builder's log says about layers, and the
            serialized engine.
    """

    where_from: str
    configure: Callable[[Any, Any, list[str]], None]
    layers: Callable[[Any, list[str], bytes], list[Layer]]


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
