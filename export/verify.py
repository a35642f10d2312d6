"""Whether an exported network is still the network: on other engines, against float32 PyTorch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmfnet_fast.colour import to_network
from dmfnet_fast.engines import Precision
from dmfnet_fast.engines.openvino_engine import OpenVINOEngine
from dmfnet_fast.errors import EngineError
from dmfnet_fast.fusion_file import INPUTS, seal
from dmfnet_fast.model import DMFNet
from dmfnet_fast.noise import fusion_noise
from dmfnet_fast.phantom import make_phantom

Arrays = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Limit:
    """How far an engine's picture may be from float32 PyTorch's.

    Attributes:
        max_abs: of the luminance in [-1, 1], where a grey level is 0.0078.
        psnr: least, of the 8-bit pictures, in dB.
    """

    max_abs: float
    psnr: float


# Rounding in float32 reaches 5e-6, with which a pixel in some thousands falls to the next grey level. bfloat16 has 8
# bits of mantissa; with trained weights and with random ones single pixels reach 0.065, the mean 0.005 (50 dB).
LIMITS = {"float32": Limit(1e-4, 65.0), "bfloat16": Limit(0.1, 43.0)}


@dataclass(frozen=True)
class Parity:
    """One engine at one precision, over all inputs.

    Attributes:
        engine, precision: what ran.
        max_abs: largest error of the luminance in [-1, 1].
        psnr: of the 8-bit pictures, in dB; infinite where they are equal.
    """

    engine: str
    precision: str
    max_abs: float
    psnr: float

    @property
    def within(self) -> bool:
        limit = LIMITS[self.precision]
        return self.max_abs <= limit.max_abs and self.psnr >= limit.psnr

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        return asdict(self) | {"psnr": self.psnr if math.isfinite(self.psnr) else None}

    def __str__(self) -> str:
        limit = LIMITS[self.precision]
        return (
            f"{self.engine}, {self.precision}: max abs error {self.max_abs:.1e} (limit {limit.max_abs:g}), "
            f"PSNR {self.psnr:.1f} dB (limit {limit.psnr:g})"
        )


def compare(engine: str, precision: str, fused: list[NDArray[Any]], reference: list[NDArray[Any]]) -> Parity:
    """Compare luminances in [-1, 1], (N, 1, H, W) each."""
    pairs = list(zip(fused, reference, strict=True))
    largest = max(float(np.abs(f - r).max()) for f, r in pairs)
    grey = [[np.rint((image + 1.0) * 127.5).clip(0, 255) for image in pair] for pair in pairs]
    error = np.concatenate([(f - r).ravel() for f, r in grey])
    mse = float(np.square(error).mean())
    return Parity(engine, precision, largest, 10 * math.log10(255**2 / mse) if mse else math.inf)


def inputs() -> list[Arrays]:
    """Phantom pairs: a batch of two that is not square, and a larger one."""
    first, second = make_phantom(0, 128), make_phantom(1, 128)
    parts = (slice(32, 96), slice(16, 112))
    batches = [([first, second], parts), ([first], (slice(None), slice(None)))]
    result: list[Arrays] = []
    for phantoms, part in batches:
        a, b = (
            np.stack([to_network(np.ascontiguousarray(picture[part]), (0, 255))[None] for picture in pictures])
            for pictures in ([p.mri for p in phantoms], [p.other("PET") for p in phantoms])
        )
        result.append((a, b, fusion_noise(0, *a.shape[2:])))
    return result


def _on_onnx_runtime(proto: bytes, batches: list[Arrays]) -> list[NDArray[np.float32]]:
    try:
        onnxruntime: Any = import_module("onnxruntime")  # which has no type hints
        session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
        return [session.run(None, dict(zip(INPUTS, arrays, strict=True)))[0] for arrays in batches]
    except Exception as error:  # its exceptions have no common class
        raise EngineError(
            f"ONNX Runtime cannot run the exported network: {error}; upgrade onnxruntime or uninstall it "
            "(it is not needed, only asked for a second opinion)"
        ) from error


def verify(model: DMFNet, proto: bytes) -> Iterator[Parity]:
    """Run an exported network on OpenVINO, at each precision that this CPU has, and on ONNX Runtime if installed.

    Args:
        model: as trained.
        proto: the ONNX file's contents.

    Yields:
        The parity of each engine, once it has run.

    Raises:
        EngineError: OpenVINO cannot open it.
        MissingExtraError: OpenVINO is not installed.
    """
    batches = inputs()
    with torch.inference_mode():
        reference = [model(*map(torch.tensor, arrays)).numpy() for arrays in batches]
    if find_spec("onnxruntime") is not None:
        yield compare("ONNX Runtime", "float32", _on_onnx_runtime(proto, batches), reference)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exported.onnx"
        path.write_bytes(seal(proto))
        choices: tuple[Precision, ...] = ("float32", "auto")
        engines = [OpenVINOEngine(path, "cpu", choice, None) for choice in choices]
        for precision, engine in {engine.info["precision"]: engine for engine in engines}.items():
            yield compare("OpenVINO", precision, [engine.run(*arrays) for arrays in batches], reference)


def check(parity: Parity) -> None:
    """Raise an EngineError if an engine's parity is beyond its limits."""
    if not parity.within:
        raise EngineError(f"the exported network differs from the weights: {parity}; nothing was written")
