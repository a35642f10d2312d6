"""`.onnx` files made by dmfnet-export, run by OpenVINO on the CPU, x86 and Arm."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.engines.base import Engine, Precision
from dmfnet_fast.errors import EngineError, require
from dmfnet_fast.fusion_file import FORMAT, INPUTS, KIND

# Sizes that get a compiled model of their own; all others share one of any size, which is a fifth slower but need
# not be compiled anew, which takes as long as a dozen fusions.
OWN_SIZES = 2
CACHE_BYTES = 2**30
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def cache_folder() -> Path:
    """Where compiled models are kept between processes: DMFNET_CACHE, or the user's cache folder."""
    stated = os.environ.get("DMFNET_CACHE")
    if stated:
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmfnet-fast"


def _writable(folder: Path) -> bool:
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.access(folder, os.W_OK)
    return False


def _prune(folder: Path) -> None:
    """Remove the oldest compiled models beyond CACHE_BYTES."""
    with suppress(OSError):
        kept = 0
        for file in sorted(folder.glob("*.blob"), key=lambda f: f.stat().st_mtime, reverse=True):
            kept += file.stat().st_size
            if kept > CACHE_BYTES:
                file.unlink()


class OpenVINOEngine(Engine):
    """One ONNX file, compiled for each size when that is first seen, or loaded from the cache on disk.

    Pairs of a batch are fused one after the other: on a CPU that is as fast, and takes less memory.
    """

    largest_batch = 1

    def __init__(self, path: Path, device: str, precision: Precision, threads: int | None) -> None:
        openvino = require("openvino", extra="cpu")
        if device != "cpu":
            raise EngineError(f"{path}: .onnx engines run on the CPU, not on {device!r}; on a GPU use .safetensors")
        self._core = openvino.Core()
        try:
            self._model = self._core.read_model(path)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(f"{path}: is not a readable ONNX file, or is damaged: {reason}") from error
        if self._metadata("format") != FORMAT or self._metadata("kind") != KIND:
            names = ", ".join(port.get_any_name() for port in self._model.inputs)
            raise EngineError(
                f"{path}: was not made by dmfnet-export (its inputs are {names}); make it anew from weights"
            )
        native = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "auto":
            precision = "bfloat16" if native else "float32"
        if precision not in _HINTS:
            raise EngineError(f"precision {precision!r}: on a CPU use auto, float32 or bfloat16")
        if precision == "bfloat16" and not native:
            raise EngineError("precision 'bfloat16': this CPU has no bfloat16 arithmetic; use auto or float32")
        self._info = {
            "engine": f"openvino {openvino.__version__.split('-')[0]}",
            "device": "cpu",
            "precision": precision,
            "weights": self._metadata("sha256"),
        }
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[precision]}
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._cache = cache_folder()
        if _writable(self._cache):
            self._settings["CACHE_DIR"] = str(self._cache)
        self._requests: dict[tuple[int, int] | None, Any] = {}  # by size, None for any

    def _metadata(self, name: str) -> str:
        place = ["framework", name]
        return str(self._model.get_rt_info(place).astype(str)) if self._model.has_rt_info(place) else ""

    def _request(self, height: int, width: int) -> Any:
        """An inference request for one pair of this size."""
        size: tuple[int, int] | None = (height, width)
        if size not in self._requests and len(self._requests) >= OWN_SIZES:
            size = None
        if size not in self._requests:
            model = self._model.clone()
            inner = list(size) if size is not None else [-1, -1]
            shapes = ([1, 1, *inner], [1, 1, *inner], [3, 2, *inner])
            model.reshape(dict(zip(INPUTS, shapes, strict=True)))
            self._requests[size] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
            _prune(self._cache)
        return self._requests[size]

    def run(self, a: NDArray[np.float32], b: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._model is None:
            raise EngineError("the engine is closed")
        request = self._request(*a.shape[2:])
        fused = np.empty_like(a)
        for n in range(len(a)):
            inputs = (a[n : n + 1], b[n : n + 1], noise)
            request.infer(dict(zip(INPUTS, inputs, strict=True)), share_inputs=True)
            fused[n] = request.get_output_tensor().data[0]
        return fused

    def close(self) -> None:
        self._requests.clear()
        self._model = None

    @property
    def info(self) -> dict[str, str]:
        return self._info
