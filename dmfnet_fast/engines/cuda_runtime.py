"""The CUDA runtime through cuda-python, for one GPU and with every call checked."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dmfnet_fast.errors import EngineError, require

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: its name, which several models may share: all modules of Jetson Orin are called "Orin".
        capability: compute capability, such as "8.9".
        multiprocessors: number of its multiprocessors.
        memory: size of its memory in bytes.
        integrated: whether this is the system's memory.
    """

    name: str
    capability: str
    multiprocessors: int
    memory: int
    integrated: bool

    @property
    def model(self) -> str:
        """The name, and what tells apart models of the same name."""
        return f"{self.name}, {self.multiprocessors} multiprocessors, {self.memory / 2**30:.0f} GiB"


class Cuda:
    """The CUDA runtime on one GPU.

    Args:
        device: "cuda" (the first GPU) or "cuda:N".
        extra: extra of this package that installs cuda-python, for the error message.

    Raises:
        EngineError: there is no driver, or no such GPU.
        MissingExtraError: cuda-python is not installed.
    """

    def __init__(self, device: str, extra: str = "tensorrt") -> None:
        self.runtime: Any = require("cuda.bindings.runtime", extra=extra)
        self.index = int(device.partition(":")[2] or 0)
        try:
            count = self.call("cudaGetDeviceCount")
        except EngineError as error:
            raise EngineError(f"device {device!r}: {error}; check the NVIDIA driver (nvidia-smi)") from error
        if self.index >= count:
            raise EngineError(f"device {device!r}: there are {count} CUDA GPUs, counted from 0")

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the CUDA runtime function `name` and return its first result, or None if it has none.

        Raises:
            EngineError: the call failed.
            MemoryError: the call ran out of memory.
        """
        try:
            status, *results = getattr(self.runtime, name)(*arguments)
        except RuntimeError as error:  # raised by cuda-python 12.6 if there is no driver
            raise EngineError(f"CUDA cannot do {name}: {error}") from error
        if int(status) != 0:
            words = self.runtime.cudaGetErrorString(status)[1].decode()
            if int(status) == _OUT_OF_MEMORY:
                raise MemoryError(f"{name}: {words}")
            raise EngineError(f"CUDA cannot do {name}: {words}")
        return results[0] if results else None

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this GPU the thread's current one, and restore the previous one on exit."""
        before = self.call("cudaGetDevice")
        if before == self.index:
            yield
            return
        self.call("cudaSetDevice", self.index)
        try:
            yield
        finally:
            self.call("cudaSetDevice", before)

    @property
    def gpu(self) -> Gpu:
        """The GPU."""
        found = self.call("cudaGetDeviceProperties", self.index)
        return Gpu(
            found.name.decode(),
            f"{found.major}.{found.minor}",
            found.multiProcessorCount,
            found.totalGlobalMem,
            bool(found.integrated),
        )

    @property
    def driver(self) -> str:
        """The newest version of CUDA that the driver supports, such as "12.6"."""
        version = self.call("cudaDriverGetVersion")
        return f"{version // 1000}.{version % 1000 // 10}"


def handle_address(handle: Any) -> int:
    """The address that TensorRT takes for a handle of cuda-python, such as a stream.

    cuda-python 12.9 deprecated `int(handle)` in favor of a function that older releases lack. All have `getPtr`,
    which says where the handle is stored.
    """
    return ctypes.c_void_p.from_address(handle.getPtr()).value or 0


def current_gpu(device: str = "cuda") -> Gpu:
    """A GPU of this machine. Raises the same errors as `Cuda`."""
    return Cuda(device).gpu
