"""The CUDA runtime through cuda-python, for one GPU and with every call checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dmfnet_fast.errors import EngineError, require

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


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
    def gpu(self) -> tuple[str, str]:
        """The GPU's name and its compute capability, such as "8.9"."""
        found = self.call("cudaGetDeviceProperties", self.index)
        return found.name.decode(), f"{found.major}.{found.minor}"


def current_gpu(device: str = "cuda") -> tuple[str, str]:
    """Name and compute capability of a GPU. Raises the same errors as `Cuda`."""
    return Cuda(device).gpu
