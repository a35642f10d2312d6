"""Runs `.safetensors` weights with PyTorch on the CPU or an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.diffusion.noise import fusion_noise
from dmfnet_fast.engines.arithmetic import arithmetic
from dmfnet_fast.engines.base import Engine, some_pairs
from dmfnet_fast.engines.cuda_graph import CapturedFusion
from dmfnet_fast.engines.devices import has_native_bfloat16, torch_device
from dmfnet_fast.engines.pixels import PixelsToPixels
from dmfnet_fast.errors import EngineError, is_lack_of_memory, require
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.model import load_model, optimize
from dmfnet_fast.model.weights import read_metadata
from dmfnet_fast.precision import FloatPrecision, PrecisionChoice
from dmfnet_fast.wording import aligned

torch = require("torch", extra="torch")

KEPT_GRAPHS = 8  # number of CUDA graphs kept in GPU memory; each size has one for gray and one for color
OLDEST_WITH_KERNELS = (8, 0)  # compute capability; Triton supports no older GPUs
# Largest number of pixels in one batch on the GPU. The preset "base" keeps 0.8 GB of tensors alive for each 256x256
# pair (counted).
PIXELS_AT_ONCE = 4 * 256 * 256


def _kernels(device: Any) -> tuple[bool, str]:
    """Whether our kernels are used, and the version of Triton or the reason why they are not."""
    if device.type == "cpu":
        return False, "none"
    if torch.cuda.get_device_capability(device) < OLDEST_WITH_KERNELS:
        return False, "none (compute capability below 8.0)"
    if find_spec("triton") is None:
        return False, "none (triton is not installed)"
    return True, f"triton {require('triton', extra='gpu').__version__}"


class TorchEngine(Engine):
    """The optimized network; on an NVIDIA GPU it uses our kernels and one CUDA graph for each size.

    "auto" is float16 on a GPU; on a CPU it is bfloat16 if the CPU supports that natively, otherwise float32. On a CPU
    the pairs of a batch are fused one after the other, which is as fast and takes less memory.

    On a GPU, cuDNN's heuristics choose among deterministic algorithms. Nothing is chosen by timing, as the choice, and
    with it the image, could then differ from run to run.
    """

    def __init__(self, path: Path, device: str, precision: PrecisionChoice, threads: int | None) -> None:
        self._device = torch_device(device)
        if self._device.type == "cuda" and self._device.index is None:
            # The current GPU can change later and differs between threads.
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._on_cpu = self._device.type == "cpu"
        computed = self._default_precision() if precision == "auto" else precision
        assert computed != "int8", "EngineKind.open rejects it"
        if threads is not None:
            torch.set_num_threads(threads)
        self.largest_batch = 1 if self._on_cpu else 4
        self.takes_pixels = not self._on_cpu
        self.pixels_by_kernels = False  # they have not run on a GPU yet
        kernels, told = _kernels(self._device)
        trained = load_model(path)
        self.interface = interface_of(trained.config.to_dict())
        model = optimize(trained, computed, together=not self._on_cpu, kernels=kernels)
        self._model: Callable[..., Any] | None = model.to(self._device)
        self._sizes: dict[Hashable, CapturedFusion] = {}  # the most recently used last
        self._free = [] if self._on_cpu else [torch.cuda.Stream(self._device) for _ in range(KEPT_GRAPHS)]
        self._info = {
            "engine": f"torch {torch.__version__}",
            "device": str(self._device),
            "precision": computed,
            "weights": read_metadata(path).get("sha256", ""),
            "kernels": told,
        }

    def _default_precision(self) -> FloatPrecision:
        if not self._on_cpu:
            return "float16"
        return "bfloat16" if has_native_bfloat16("cpu") else "float32"

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        if self._model is None:
            raise EngineError("the engine is closed")
        fused = np.empty_like(inputs["a"])
        pairs = 1 if self._on_cpu else max(1, PIXELS_AT_ONCE // (fused.shape[2] * fused.shape[3]))
        with torch.inference_mode():
            for start in range(0, len(fused), pairs):
                part = slice(start, start + pairs)
                fused[part] = self._run_at_once(some_pairs(inputs, part))
        return fused

    def _run_at_once(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        assert self._model is not None
        if self._on_cpu:
            # torch warns about read-only arrays, such as the noise.
            tensors = {name: torch.from_numpy(np.require(array, requirements="W")) for name, array in inputs.items()}
            fused: NDArray[np.float32] = self._model(**tensors).numpy()
            return fused
        pairs, _, height, width = inputs["a"].shape
        size = pairs, height, width
        return self._captured(size, lambda: self._model, self.interface.shapes(*size), torch.float32).run(inputs)

    def fuse_pixels(self, a: NDArray[np.uint8], b: NDArray[np.uint8], rules: Rules, seed: int) -> NDArray[np.uint8]:
        """Fuse 8-bit images with one CUDA graph for each combination of shapes, rules and seed."""
        if self._model is None:
            raise EngineError("the engine is closed")
        _, height, width = a.shape
        fused = np.empty_like(b)
        pairs = max(1, PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(fused), pairs):
            part = slice(start, start + pairs)
            shapes = {"a": a[part].shape, "b": b[part].shape}
            key = "pixels", *shapes.values(), rules, seed, self.pixels_by_kernels
            with torch.inference_mode():
                captured = self._captured(key, partial(self._around, rules, seed, height, width), shapes, torch.uint8)
                fused[part] = captured.run({"a": a[part], "b": b[part]})
        return fused

    def _around(self, rules: Rules, seed: int, height: int, width: int) -> PixelsToPixels:
        """The network with conversion from and to pixels."""
        noise = None
        if self.interface.timesteps:
            noise = torch.tensor(fusion_noise(seed, height, width, self.interface.timesteps), device=self._device)
        return PixelsToPixels(self._model, self.interface, rules, noise, self._device, self.pixels_by_kernels)

    def _captured(
        self, key: Hashable, make: Callable[[], Any], shapes: Mapping[str, Sequence[int]], dtype: Any
    ) -> CapturedFusion:
        """The graph of a key. A new one captures the network that `make` returns.

        If there is no room, the new graph replaces the least recently used one.
        """
        captured = self._sizes.pop(key, None)
        if captured is None:
            captured = self._capture(make, shapes, dtype)
        self._sizes[key] = captured
        return captured

    def _capture(self, make: Callable[[], Any], shapes: Mapping[str, Sequence[int]], dtype: Any) -> CapturedFusion:
        if not self._free:
            self._drop(next(iter(self._sizes)))
        try:
            return self._captured_now(make, shapes, dtype)
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error) or not self._sizes:
                raise
        for other in list(self._sizes):
            self._drop(other)
        torch.cuda.empty_cache()
        return self._captured_now(make, shapes, dtype)

    def _captured_now(self, make: Callable[[], Any], shapes: Mapping[str, Sequence[int]], dtype: Any) -> CapturedFusion:
        with arithmetic():  # the graph keeps the settings and algorithms of its capture
            captured = CapturedFusion(make(), shapes, self._device, self._free[-1], dtype)
        self._free.pop()
        return captured

    def _drop(self, key: Hashable) -> None:
        self._free.append(self._sizes.pop(key).stream)

    def close(self) -> None:
        self._model = None
        self._sizes.clear()
        if not self._on_cpu:
            torch.cuda.empty_cache()

    @property
    def info(self) -> dict[str, str]:
        return self._info


def describe(path: Path) -> Iterator[str]:
    """Describe a file from its metadata; see `EngineFunctions`."""
    return aligned({"file": path, **read_metadata(path)})
