"""`.onnx` files, run by OpenVINO on the CPU, x86 and Arm."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.engines.base import Engine
from dmfnet_fast.errors import EngineError, require

# Shapes whose compiled models are kept; a compiled model holds the weights in its own layout.
KEPT_SHAPES = 4


def cache_folder() -> Path:
    """Where compiled models are kept between processes: DMFNET_CACHE, or the user's cache folder."""
    stated = os.environ.get("DMFNET_CACHE")
    if stated:
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmfnet-fast"


class OpenVINOEngine(Engine):
    """One ONNX file; every shape is compiled when it is first seen, or loaded from the cache on disk.

    It computes in bfloat16 where the CPU multiplies that natively (AVX512-BF16, AMX, Arm's BF16), else in float32.
    """

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        openvino = require("openvino", extra="cpu")
        if device != "cpu":
            raise EngineError(f"{path}: .onnx engines run on the CPU, not on {device!r}; on a GPU use .safetensors")
        self._core = openvino.Core()
        try:
            self._model = self._core.read_model(path)
        except RuntimeError as error:
            raise EngineError(f"{path}: is not a readable ONNX file, or is damaged ({str(error).splitlines()[0]})") from error
        names = [port.get_any_name() for port in self._model.inputs]
        if names != ["a", "b", "noise"]:
            raise EngineError(f"{path}: was not made by dmfnet-export: its inputs are {', '.join(names)}")
        native = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._precision = "bfloat16" if native else "float32"
        self._settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if native else "f32",
        }
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._cache = cache_folder()
        self._compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._closed = False

    def _request(self, shape: tuple[int, ...]) -> Any:
        """An inference request for images (N, 1, H, W)."""
        if shape in self._compiled:
            self._compiled.move_to_end(shape)
            return self._compiled[shape]
        model = self._model.clone()
        model.reshape({"a": list(shape), "b": list(shape), "noise": [3, 2, *shape[2:]]})
        settings = dict(self._settings)
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            settings["CACHE_DIR"] = str(self._cache)
        except OSError:
            pass  # a read-only home: compiled anew by each process
        request = self._core.compile_model(model, "CPU", settings).create_infer_request()
        self._compiled[shape] = request
        if len(self._compiled) > KEPT_SHAPES:
            self._compiled.popitem(last=False)
        return request

    def run(self, a: NDArray[np.float32], b: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._closed:
            raise EngineError("the engine is closed")
        request = self._request(a.shape)
        request.infer({"a": a, "b": b, "noise": noise}, share_inputs=True)
        fused: NDArray[np.float32] = request.get_output_tensor().data.copy()
        return fused

    def close(self) -> None:
        self._compiled.clear()
        self._closed = True

    @property
    def info(self) -> dict[str, str]:
        return {
            "engine": f"openvino {self._version}",
            "device": "cpu",
            "precision": self._precision,
            "weights": self._weights,
        }
