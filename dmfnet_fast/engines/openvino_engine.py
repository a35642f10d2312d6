"""Runs `.onnx` files made by dmfnet-export with OpenVINO, on x86 and Arm CPUs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.cache import cache_folder, prune
from dmfnet_fast.artifacts.interface import IMAGES_TAKEN, interface_of
from dmfnet_fast.artifacts.onnx_metadata import PIXELS, check_sealed, exported_properties, is_sealed
from dmfnet_fast.artifacts.parity import Parity
from dmfnet_fast.engines.base import Engine, some_pairs
from dmfnet_fast.errors import EngineError, is_lack_of_memory, require
from dmfnet_fast.precision import Precision, PrecisionChoice
from dmfnet_fast.wording import aligned

KEPT_SIZES = 4  # number of sizes whose compiled models stay in memory
_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
# Precisions of the files that run here. The type of their floating-point operations is chosen when a file is opened.
FILE_PRECISIONS: tuple[Precision, ...] = ("float32", "int8")


def load_openvino(extra: str = "cpu") -> Any:
    """Import OpenVINO without its telemetry, which reports each import to Google Analytics under an ID of the user's.

    Args:
        extra: the extra that an error names.

    Raises:
        MissingExtraError: it is not installed, or cannot be loaded.
    """
    # As if the package that reports was not installed: OpenVINO and NNCF have stand-ins for it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return require("openvino", extra)


@lru_cache(maxsize=1)
def shared_core() -> Any:
    """The OpenVINO core, which stays loaded until the process ends.

    OpenVINO's CPU plugin installs an alternate signal stack for the thread that loads it. Unloading the plugin can
    leave that stack dangling, and the next Ctrl-C would crash.
    """
    return load_openvino().Core()


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _precisions(path: Path, kind: str, asked: PrecisionChoice) -> tuple[Precision, Precision]:
    """The precision to report for a graph, and the one in which its floating-point operations run.

    Args:
        path: the file, for error messages.
        kind: precision of the graph, one of FILE_PRECISIONS.
        asked: requested precision: "auto", or one that this kind of engine supports.

    Raises:
        EngineError: the graph or this CPU does not support the requested precision.
    """
    native = has_bfloat16()
    fastest: Precision = "bfloat16" if native else "float32"
    if kind == "int8":
        if asked not in ("auto", "int8"):
            raise EngineError(
                f"{path}: its precision is int8; for precision {asked!r} make a file with dmfnet-export --target onnx"
            )
        return "int8", fastest
    if asked == "int8":
        raise EngineError(f"{path}: its precision is {kind}; make a file with dmfnet-export --target onnx --int8")
    if asked == "auto":
        return fastest, fastest
    if asked == "bfloat16" and not native:
        raise EngineError("precision 'bfloat16': OpenVINO reports none for this CPU; use auto or float32")
    return asked, asked


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Reduce OpenVINO's errors, which are many lines long and refer to its sources, to an EngineError of one line."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if is_lack_of_memory(error):
            raise
        raise EngineError(f"{what}: {lines[-1] if lines else error}") from error


class OpenVINOEngine(Engine):
    """An ONNX file, compiled for each size at its first use or loaded from the cache on disk.

    "auto" is bfloat16 if OpenVINO reports it for the CPU (x86 with AVX512-BF16 or AMX), otherwise float32. A file that
    was exported with --int8 supports only that precision; its operations that are not in 8 bits run as with "auto", or
    in float32 where OpenVINO cannot combine bfloat16 with 8 bits, which happens on CPUs with AMX.

    The pairs of a batch are fused one after the other, which is as fast on a CPU and takes less memory.
    """

    largest_batch = 1

    def __init__(
        self, path: Path, device: str, precision: PrecisionChoice, threads: int | None, cache: Path | None = None
    ) -> None:
        openvino = load_openvino()
        content = path.read_bytes()
        known = exported_properties(content, str(path))
        kind = known.get("precision", "float32")
        if kind not in FILE_PRECISIONS:
            raise EngineError(
                f"{path}: is a {kind} graph to build TensorRT engines from (dmfnet-export {path.name}); "
                "for a CPU make one with dmfnet-export --target onnx"
            )
        check_sealed(content, str(path))
        self._core = shared_core()
        with _translated(f"{path}: is not a readable ONNX file, or is damaged"):
            self._model = self._core.read_model(path)
        computed, hint = _precisions(path, kind, precision)
        self.interface = interface_of(json.loads(known.get("config", "{}")), PIXELS in known)
        self.takes_pixels = self.interface.pixels
        self._info = {
            "engine": f"openvino {openvino.__version__.split('-')[0]}",
            "device": device,
            "precision": computed,
            "weights": known.get("sha256", ""),
        }
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[hint]}
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        self._cache = cache
        if cache is not None:
            self._settings["CACHE_DIR"] = str(cache)
        self._requests: dict[tuple[int, int], Any] = {}  # by size, the most recently used last

    def _request(self, height: int, width: int) -> Any:
        """An inference request for one pair of this size."""
        request = self._requests.pop((height, width), None)
        if request is None:
            model = self._model.clone()
            model.reshape({name: list(shape) for name, shape in self.interface.shapes(1, height, width).items()})
            request = self._compiled(model).create_infer_request()
            if self._cache is not None:
                prune(self._cache)
        self._requests[height, width] = request
        if len(self._requests) > KEPT_SIZES:
            self._requests.pop(next(iter(self._requests)))
        return request

    def _compiled(self, model: Any) -> Any:
        try:
            return self._core.compile_model(model, "CPU", self._settings)
        except RuntimeError as error:
            # On CPUs with AMX, OpenVINO 2026.4 has "no suitable implementations" of some 8-bit networks in bfloat16.
            in_8_bits, exact = self._info["precision"] == "int8", {"INFERENCE_PRECISION_HINT": _HINTS["float32"]}
            if not in_8_bits or exact.items() <= self._settings.items() or is_lack_of_memory(error):
                raise
        self._settings.update(exact)
        return self._core.compile_model(model, "CPU", self._settings)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if self._model is None:
            raise EngineError("the engine is closed")
        fused = np.empty_like(inputs["b"])
        with _translated("OpenVINO cannot run the network"):
            request = self._request(*inputs["a"].shape[-2:])
            for n in range(len(fused)):
                request.infer(some_pairs(inputs, slice(n, n + 1)), share_inputs=True)
                fused[n] = request.get_output_tensor().data[0]
        return fused

    def close(self) -> None:
        self._requests.clear()
        self._model = None

    @property
    def info(self) -> dict[str, str]:
        return self._info


def open_cached(path: Path, device: str, precision: PrecisionChoice, threads: int | None) -> OpenVINOEngine:
    """Open an engine that keeps its compiled models in `cache_folder`."""
    return OpenVINOEngine(path, device, precision, threads, cache_folder())


def describe(path: Path) -> Iterator[str]:
    """Describe a file from its metadata; see `EngineFunctions`."""
    content = path.read_bytes()
    known = exported_properties(content, str(path))
    try:
        yield from aligned(
            {
                "file": path,
                "kind": "ONNX model, for any batch and any multiple of 16 from 64 on",
                "images": IMAGES_TAKEN[PIXELS in known],
                "precision": known["precision"],
                "weights": known["sha256"],
                "config": json.loads(known["config"]),
                "training": json.loads(known["training"]),
                "largest activation": f"{float(known['largest_activation']):.4g}",
                "unchanged": "yes" if is_sealed(content) else "NO: it has changed since it was exported",
            }
        )
        yield from (f"parity  {Parity.from_dict(entry)}" for entry in json.loads(known["parity"]))
    except KeyError as error:
        raise EngineError(f"{path}: has no {error} in it, so another version made it; make it anew") from error
    except (ValueError, TypeError) as error:
        raise EngineError(f"{path}: is not a readable ONNX file, or is damaged ({error})") from error
