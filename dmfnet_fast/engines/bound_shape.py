"""A TensorRT engine at one input shape: execution context, memory and CUDA graph."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import OUTPUT, SHARED, Interface
from dmfnet_fast.artifacts.parity import Shape
from dmfnet_fast.engines.cuda_runtime import Cuda, handle_address
from dmfnet_fast.engines.tensorrt_log import Log
from dmfnet_fast.errors import EngineError, is_lack_of_memory


def expect(result: Any, what: str, log: Log) -> Any:
    """Return `result` if it is truthy; otherwise raise TensorRT's last error and warnings, and forget them.

    Raises:
        MemoryError: TensorRT ran out of memory.
        EngineError: TensorRT failed for another reason.
    """
    if result:
        return result
    why, warned = log.take()
    message = f"TensorRT cannot {what}: {why}"
    if is_lack_of_memory(RuntimeError(message)):
        raise MemoryError(message)
    raise EngineError(message + warned)


class _Host:
    """Pinned host memory as an array."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any], stack: ExitStack) -> None:
        size = int(np.prod(shape)) * dtype.itemsize
        self.address = int(cuda.call("cudaMallocHost", size))
        stack.callback(cuda.call, "cudaFreeHost", self.address)
        memory = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(self.address))
        self.values = memory.view(dtype).reshape(shape)


class BoundShape:
    """An execution context for one input shape, its memory, and a CUDA graph of copies and inference.

    Args:
        cuda: CUDA runtime of the engine's GPU.
        context: creates an execution context without memory of its own.
        stream: stream for all copies and launches.
        interface: inputs of the network.
        shape: number of image pairs, height and width.
        log: what TensorRT's logger fills.

    Raises:
        EngineError: a call of TensorRT or CUDA failed.
        MemoryError: the GPU has too little memory. Everything is freed in either case.
    """

    def __init__(
        self,
        cuda: Cuda,
        context: Callable[[], Any],
        stream: Any,
        interface: Interface,
        shape: Shape,
        log: Log,
    ) -> None:
        self._cuda, self._stream, self._log = cuda, stream, log
        shapes = interface.shapes(*shape)
        self._of_pairs = [name for name in shapes if name not in SHARED]
        # The read-only arrays whose values are on the GPU, so that the same noise and rules are not copied again.
        self._shared: dict[str, NDArray[Any] | None] = {name: None for name in shapes if name in SHARED}
        with ExitStack() as stack:
            kinds = {name: (size, interface.dtype(name)) for name, size in shapes.items()}
            kinds[OUTPUT] = kinds["b"]
            self._hosts = {name: _Host(cuda, *kind, stack) for name, kind in kinds.items()}
            self._addresses = {name: self._allocate(host.values.nbytes, stack) for name, host in self._hosts.items()}
            self._context = self._expect(context(), "make an execution context")
            try:
                self._bind(shapes, stack)
                for name in self._shared:
                    self._copy(name, to_gpu=True)
                self._enqueue()  # warm-up: choices and compilation at the first run must not be captured
                cuda.call("cudaStreamSynchronize", stream)
                stack.callback(self._forget_context)
                # The warm-up succeeded, so if the capture fails, the engine runs without a graph.
                self._graph = None
                with suppress(EngineError):
                    self._graph = self._capture(stack)
            except BaseException:
                self._forget_context()  # before its memory is freed
                raise
            self._memory = stack.pop_all()

    def _bind(self, shapes: Mapping[str, tuple[int, ...]], stack: ExitStack) -> None:
        for name, size in shapes.items():
            self._expect(self._context.set_input_shape(name, size), f"take {name} of {size}")
        scratch = int(self._context.update_device_memory_size_for_shapes())
        if scratch:
            self._context.set_device_memory(self._allocate(scratch, stack), scratch)
        for name, address in self._addresses.items():
            self._expect(self._context.set_tensor_address(name, address), f"take memory for {name}")

    def _expect(self, result: Any, what: str) -> Any:
        return expect(result, what, self._log)

    def _allocate(self, size: int, stack: ExitStack) -> int:
        address = int(self._cuda.call("cudaMalloc", size))
        stack.callback(self._cuda.call, "cudaFree", address)
        return address

    def _forget_context(self) -> None:
        self._context = None

    def _copy(self, name: str, to_gpu: bool) -> None:
        kinds = self._cuda.runtime.cudaMemcpyKind
        host, address = self._hosts[name], self._addresses[name]
        ends = (address, host.address) if to_gpu else (host.address, address)
        kind = kinds.cudaMemcpyHostToDevice if to_gpu else kinds.cudaMemcpyDeviceToHost
        self._cuda.call("cudaMemcpyAsync", *ends, host.values.nbytes, kind, self._stream)

    def _enqueue(self) -> None:
        """Copy the inputs to the GPU, run the engine and copy the result back, all asynchronously.

        What all pairs share, such as the noise, which is larger than both images, is already on the GPU.
        """
        for name in self._of_pairs:
            self._copy(name, to_gpu=True)
        self._expect(self._context.execute_async_v3(handle_address(self._stream)), "run the engine")
        self._copy(OUTPUT, to_gpu=False)

    def _capture(self, stack: ExitStack) -> Any:
        """Capture copies and inference as a CUDA graph; None if TensorRT-RTX reports that capture is impossible."""
        # TensorRT does not offer this query; it can capture every engine without loops.
        asked = hasattr(self._context, "is_stream_capturable")
        if asked and not self._context.is_stream_capturable(handle_address(self._stream)):
            return None
        # Thread-local mode: other threads may allocate during the capture.
        mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call("cudaStreamBeginCapture", self._stream, mode)
        try:
            self._enqueue()
        except BaseException:
            # The stream stays unusable until the capture has ended.
            with suppress(EngineError, MemoryError):
                self._cuda.call("cudaGraphDestroy", self._cuda.call("cudaStreamEndCapture", self._stream))
            raise
        graph = self._cuda.call("cudaStreamEndCapture", self._stream)
        try:
            executable = self._cuda.call("cudaGraphInstantiate", graph, 0)
            stack.callback(self._cuda.call, "cudaGraphExecDestroy", executable)
        finally:
            self._cuda.call("cudaGraphDestroy", graph)
        return executable

    @property
    def captured(self) -> bool:
        """Whether the engine runs as a CUDA graph at this shape."""
        return self._graph is not None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Run the engine like `Engine.run`, on inputs of this shape only."""
        for name in self._of_pairs:
            self._hosts[name].values[...] = inputs[name]
        for name, there in self._shared.items():
            given = inputs[name]
            if given is not there:
                self._hosts[name].values[...] = given
                self._copy(name, to_gpu=True)
                self._shared[name] = None if given.flags.writeable else given
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.call("cudaGraphLaunch", self._graph, self._stream)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        fused: NDArray[Any] = self._hosts[OUTPUT].values.copy()
        return fused

    def close(self) -> None:
        """Free the graph, the context and the memory. Closing again has no effect."""
        self._memory.close()
