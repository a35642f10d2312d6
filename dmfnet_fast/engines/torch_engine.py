"""`.safetensors` weights, run by PyTorch in float32 on the CPU or a CUDA GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.devices import torch_device
from dmfnet_fast.engines.base import Engine
from dmfnet_fast.errors import EngineError, require
from dmfnet_fast.model import load_model
from dmfnet_fast.model.weights import read_metadata

torch = require("torch", extra="torch")


class TorchEngine(Engine):
    """The network as trained."""

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        self._device = torch_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        self._weights = read_metadata(path).get("sha256", "")
        model = load_model(path)
        model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model: Callable[..., Any] | None = model

    def run(self, a: NDArray[np.float32], b: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._model is None:
            raise EngineError("the engine is closed")
        # TF32 and searched algorithms would change the result from GPU to GPU and run to run.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            tensors = (torch.from_numpy(np.require(x, requirements="W")).to(self._device) for x in (a, b, noise))
            fused: NDArray[np.float32] = self._model(*tensors).cpu().numpy()
        return fused

    def close(self) -> None:
        self._model = None

    @property
    def info(self) -> dict[str, str]:
        return {
            "engine": f"torch {torch.__version__}",
            "device": str(self._device),
            "precision": "float32",
            "weights": self._weights,
        }
