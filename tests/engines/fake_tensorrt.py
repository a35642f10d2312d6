"""Stand-ins for the calls of the CUDA driver and of TensorRT's runtime, which need a GPU.

Functions take what the real ones take: arguments are counted by the signatures of cuda-python, and every attribute of
a stand-in for TensorRT's classes exists in TensorRT-RTX's. Memory is real, so what is copied arrives; a captured graph
does nothing until it is launched.
"""

from __future__ import annotations

import ctypes
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

runtime: Any = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")

MODEL = "A GPU, 16 multiprocessors, 8 GiB"


class Handle(int):
    """In the place of a handle such as cudaStream_t, whose conversion by `int` is deprecated."""

    def getPtr(self) -> int:
        self._memory = ctypes.c_void_p(self + 0)
        return ctypes.addressof(self._memory)

    def __int__(self) -> int:
        raise DeprecationWarning


class Cuda:
    """In the place of cuda.bindings.runtime.

    Attributes:
        calls: names, in order; TensorRT's too.
        held: what has been allocated or created, and not freed, by its handle.
        fails_at: the number of the call that fails, from 0.
        status: that it fails with.
    """

    def __init__(self, capability: tuple[int, int] = (8, 9), gpus: int = 1, multiprocessors: int = 16) -> None:
        self._real = runtime
        self.calls: list[str] = []
        self.held: dict[int, Any] = {}
        self.recording: dict[int, list[Callable[[], None]]] = {}  # by stream
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.fails_at: int | None = None
        self.status = 999
        self.device_bytes = 0
        self.most_device_bytes = 2**40
        self.devices: list[int] = []
        self.current = threading.local()  # the current GPU is one of each thread
        self._capability, self._gpus, self._multiprocessors = capability, gpus, multiprocessors
        self.driver = 12060
        self._handles = itertools.count(7000)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        own = getattr(self, f"_{name}", None)
        if own is None:
            return getattr(self._real, name)  # enumerations
        signature = inspect.signature(getattr(self._real, name))

        def call(*arguments: Any) -> Any:
            signature.bind(*arguments)
            if name == "cudaGetErrorString":
                return 0, b"out of memory" if arguments[0] == 2 else b"unknown error"
            number = len(self.calls)
            self.calls.append(name)
            if number == self.fails_at:
                if name == "cudaStreamEndCapture":  # which ends it in any case
                    self.recording.pop(arguments[0])
                return self.status, None
            result = own(*arguments)
            return (result,) if isinstance(result, tuple) and not result else (0, result)

        return call

    def do(self, stream: int, action: Callable[[], None]) -> None:
        """Now, or when the graph that is being captured of the stream is launched."""
        if stream in self.recording:
            self.recording[stream].append(action)
        else:
            action()

    def _handle(self, what: Any) -> int:
        handle = Handle(next(self._handles))
        self.held[handle] = what
        return handle

    def _drop(self, handle: int, kind: str) -> None:
        assert self.held.pop(handle)[0] == kind

    def _cudaGetErrorString(self, _: int) -> None: ...

    def _cudaGetDeviceCount(self) -> int:
        return self._gpus

    def _cudaGetDeviceProperties(self, _: int) -> Any:
        return SimpleNamespace(
            name=b"A GPU",
            major=self._capability[0],
            minor=self._capability[1],
            multiProcessorCount=self._multiprocessors,
            totalGlobalMem=8 * 2**30,
            integrated=1,
        )

    def _cudaDriverGetVersion(self) -> int:
        return self.driver

    def _cudaGetDevice(self) -> int:
        return getattr(self.current, "device", 0)

    def _cudaSetDevice(self, device: int) -> None:
        self.devices.append(device)
        self.current.device = device

    def _cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == self._real.cudaStreamNonBlocking
        return self._handle(("stream",))

    def _cudaStreamDestroy(self, stream: int) -> None:
        self._drop(stream, "stream")

    def _cudaStreamSynchronize(self, stream: int) -> None:
        assert self.held[stream] == ("stream",)
        assert stream not in self.recording, "a captured stream cannot be waited for"

    def _cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:
        assert mode == self._real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert self.held[stream] == ("stream",)
        assert stream not in self.recording
        self.recording[stream] = []

    def _cudaStreamEndCapture(self, stream: int) -> int:
        graph = self._handle(("graph",))
        self.graphs[graph] = self.recording.pop(stream)
        return graph

    def _cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        assert flags == 0
        assert self.held[graph] == ("graph",)
        executable = self._handle(("executable",))
        self.graphs[executable] = self.graphs[graph]
        return executable

    def _cudaGraphDestroy(self, graph: int) -> None:
        self._drop(graph, "graph")
        del self.graphs[graph]

    def _cudaGraphExecDestroy(self, executable: int) -> None:
        self._drop(executable, "executable")
        del self.graphs[executable]

    def _cudaGraphLaunch(self, executable: int, stream: int) -> None:
        assert self.held[executable] == ("executable",)
        assert self.held[stream] == ("stream",)
        for action in self.graphs[executable]:
            action()

    def _memory(self, kind: str, size: int) -> int:
        memory = (ctypes.c_ubyte * size)()
        ctypes.memset(memory, 0xFF, size)  # NaN, for float32
        address = ctypes.addressof(memory)
        self.held[address] = (kind, memory, size)
        return address

    def _cudaMallocHost(self, size: int) -> int:
        return self._memory("host", size)

    def _cudaFreeHost(self, address: int) -> None:
        self._drop(address, "host")

    def _cudaMalloc(self, size: int) -> int:
        if self.device_bytes + size > self.most_device_bytes:
            raise OutOfDeviceMemory
        self.device_bytes += size
        return self._memory("device", size)

    def _cudaFree(self, address: int) -> None:
        self.device_bytes -= self.held[address][2]
        self._drop(address, "device")

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> None:
        kinds = self._real.cudaMemcpyKind
        ends = {
            kinds.cudaMemcpyHostToDevice: ("device", "host"),
            kinds.cudaMemcpyDeviceToHost: ("host", "device"),
        }[kind]
        for address, expected in zip((target, source), ends, strict=True):
            assert self.held[address][0] == expected
            assert self.held[address][2] >= size
        assert self.held[stream] == ("stream",)
        self.do(stream, lambda: (ctypes.memmove(target, source, size), None)[1])


class OutOfDeviceMemory(Exception):
    """Turned into CUDA's status by `module`."""


def module(cuda: Cuda) -> Any:
    """The stand-in as what `import` gives, with lack of memory as a status."""
    found = ModuleType("cuda.bindings.runtime")

    def get(name: str) -> Any:
        value = getattr(cuda, name)
        if name != "cudaMalloc":
            return value

        def malloc(size: int) -> Any:
            try:
                return value(size)
            except OutOfDeviceMemory:
                return 2, None

        return malloc

    vars(found)["__getattr__"] = get
    return found


class Context:
    """In the place of IExecutionContext, of a network that makes `expected`."""

    def __init__(self, library: TensorRT, siblings: list[None]) -> None:
        self._library, self._cuda, self._siblings = library, library.cuda, siblings
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: int | None = None
        for alive in (library.contexts, siblings):
            alive.append(None)

    def __del__(self) -> None:
        for alive in (self._library.contexts, self._siblings):
            alive.pop()
        if self._memory is not None and self._memory not in self._cuda.held:
            self._library.broken.append("a context outlived its memory")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._cuda.calls.append("set_input_shape")
        self._shapes[name] = shape
        return self._library.takes_shapes

    def update_device_memory_size_for_shapes(self) -> int:
        assert tuple(self._shapes) == self._library.names
        return 8 * int(np.prod(self._shapes["a"]))

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._cuda.held[memory][0] == "device"
        assert self._cuda.held[memory][2] >= size
        self._memory = memory

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert self._cuda.held[memory][0] == "device"
        self._cuda.calls.append("set_tensor_address")
        self._addresses[name] = memory
        return True

    def is_stream_capturable(self, stream_handle: int) -> bool:
        assert self._cuda.held[stream_handle] == ("stream",)
        return self._library.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._cuda.calls.append("execute_async_v3")
        assert self._cuda.held[stream_handle] == ("stream",)
        assert set(self._addresses) == {*self._library.names, "fused"}
        assert self._memory is not None
        if not self._library.runs:
            return False
        self._cuda.do(stream_handle, self._compute)
        return True

    def _array(self, name: str) -> Any:
        shape = self._shapes.get(name, self._shapes["b"])
        count = int(np.prod(shape))
        eight_bit = self._library.pixels and name in ("a", "b", "fused")
        kind: Any = ctypes.c_uint8 if eight_bit else ctypes.c_float
        assert self._cuda.held[self._addresses[name]][2] == ctypes.sizeof(kind) * count
        return np.ctypeslib.as_array((kind * count).from_address(self._addresses[name])).reshape(shape)

    def _compute(self) -> None:
        of_network = expected_pixels if self._library.pixels else expected
        self._array("fused")[...] = of_network({name: self._array(name) for name in self._library.names})


def expected(inputs: Mapping[str, Any]) -> Any:
    """What the stand-in for the network makes: (a + 3 b) / 4 + noise[0, 0] / 8, in the interval."""
    result = (inputs["a"] + 3 * inputs["b"]) / 4
    if "noise" in inputs:
        result = result + inputs["noise"][0, 0] / 8
    if "interval" in inputs:
        result = result.clip(inputs["interval"][:, :1], inputs["interval"][:, 1:])
    return result


def expected_pixels(inputs: Mapping[str, Any]) -> Any:
    """What it makes of pixels: (a + 3 b) / 4, brighter by the rules and by |noise[0, 0]|."""
    thousandth, invention = inputs["rules"]
    result = (inputs["a"][..., None] + 3.0 * inputs["b"]) / 4 + 8000 * thousandth + 16 * invention
    if "noise" in inputs:
        result = result + 8 * np.abs(inputs["noise"][0, 0])[..., None]
    return np.nan_to_num(result).clip(0, 255).astype(np.uint8)  # the first run is of memory as it was


class Cache:
    """In the place of IRuntimeCache."""

    def __init__(self, library: TensorRT) -> None:
        self._library = library

    def deserialize(self, blob: bytes) -> bool:
        self._library.read_cache = blob
        return True

    def serialize(self) -> bytes:
        return b"compiled kernels"


class RuntimeConfig:
    """In the place of IRuntimeConfig."""

    def __init__(self, library: TensorRT) -> None:
        self._library = library
        self._cache: Cache | None = None
        self.dynamic_shapes_kernel_specialization_strategy = "LAZY"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        assert strategy == "USER_MANAGED"

    def create_runtime_cache(self) -> Cache:
        return Cache(self._library)

    def set_runtime_cache(self, cache: Cache) -> bool:
        self._cache = cache
        return True


class CudaEngine:
    """In the place of ICudaEngine."""

    def __init__(self, library: TensorRT) -> None:
        self._library = library
        self._contexts: list[None] = []
        library.engines.append(None)

    def __del__(self) -> None:
        self._library.engines.pop()
        if self._contexts:
            self._library.broken.append("an engine went before its contexts")

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self._library)

    def create_execution_context(self, how: Any) -> Context | None:
        self._library.cuda.calls.append("create_execution_context")
        if self._library.flavour == "tensorrt":
            assert how == "USER_MANAGED"
        else:
            assert how.dynamic_shapes_kernel_specialization_strategy == "EAGER"
            assert how._cache is not None
        return Context(self._library, self._contexts) if self._library.makes_contexts else None


class TensorRT(ModuleType):
    """In the place of tensorrt or tensorrt_rtx."""

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

    def __init__(self, cuda: Cuda, flavour: str = "tensorrt", version: str = "10.13.2") -> None:
        super().__init__(flavour.replace("-", "_"))
        self.__version__ = version
        self.cuda, self.flavour = cuda, flavour
        self.names: tuple[str, ...] = ("a", "b", "noise")  # of the network's inputs
        self.pixels = False  # whether its images are
        self.opens = self.makes_contexts = self.takes_shapes = self.runs = self.capturable = True
        self.contexts: list[None] = []  # one for each that is alive; lists, as threads share them
        self.engines: list[None] = []
        self.broken: list[str] = []  # rules of TensorRT
        self.read_cache: bytes | None = None
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
        self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="EAGER")

    def Runtime(self, logger: Any) -> Any:
        self.logger = weakref.proxy(logger)

        def deserialize(content: bytes) -> CudaEngine | None:
            self.cuda.calls.append("deserialize_cuda_engine")
            assert isinstance(content, bytes)
            if self.opens:
                return CudaEngine(self)
            logger.log(self.ILogger.WARNING, "not this")
            logger.log(self.ILogger.ERROR, "magic tag\n does not match")
            return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


# Stand-in, and whose attributes it may have.
STANDS_FOR = {
    Context: "IExecutionContext",
    Cache: "IRuntimeCache",
    RuntimeConfig: "IRuntimeConfig",
    CudaEngine: "ICudaEngine",
}
