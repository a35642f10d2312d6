"""`.safetensors` weights, run by PyTorch on the CPU or a CUDA GPU."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.devices import torch_device
from dmfnet_fast.engines.base import Engine, Precision
from dmfnet_fast.errors import EngineError, require
from dmfnet_fast.model import load_model, optimize
from dmfnet_fast.model.weights import read_metadata

torch = require("torch", extra="torch")


def _fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively: AVX512-BF16, AMX, or Arm's."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        # Builds of torch without oneDNN, as for macOS, do not have the operator.
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class TorchEngine(Engine):
    """The optimised network.

    "auto" is bfloat16 on a CPU that has it, float32 elsewhere. On a CPU the pairs of a batch are fused one after
    the other: that is as fast, and takes less memory.
    """

    def __init__(self, path: Path, device: str, precision: Precision, threads: int | None) -> None:
        self._device = torch_device(device)
        on_cpu = self._device.type == "cpu"
        if precision == "auto":
            precision = "bfloat16" if on_cpu and _fast_bfloat16() else "float32"
        if on_cpu and precision == "float16":
            raise EngineError("precision 'float16': on a CPU use auto, float32 or bfloat16")
        if threads is not None:
            torch.set_num_threads(threads)
        self.largest_batch = 1 if on_cpu else 4
        model = load_model(path)
        self._model: Callable[..., Any] | None = optimize(model, precision, together=not on_cpu).to(self._device)
        self._info = {
            "engine": f"torch {torch.__version__}",
            "device": str(self._device),
            "precision": precision,
            "weights": read_metadata(path).get("sha256", ""),
        }

    def run(self, a: NDArray[np.float32], b: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._model is None:
            raise EngineError("the engine is closed")
        fused = np.empty_like(a)
        # TF32 and searched algorithms would change the result from GPU to GPU and run to run.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            draw = self._tensor(noise)
            for start in range(0, len(a), self.largest_batch):
                part = slice(start, start + self.largest_batch)
                fused[part] = self._model(self._tensor(a[part]), self._tensor(b[part]), draw).cpu().numpy()
        return fused

    def _tensor(self, array: NDArray[np.float32]) -> Any:
        return torch.from_numpy(np.require(array, requirements="W")).to(self._device)

    def close(self) -> None:
        self._model = None

    @property
    def info(self) -> dict[str, str]:
        return self._info
