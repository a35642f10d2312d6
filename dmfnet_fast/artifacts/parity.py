"""Whether an engine's images are those of the network as trained, in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.artifacts.network_inputs import network_inputs
from dmfnet_fast.errors import EngineError
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.metrics.similarity import hybrid_objective, psnr, ssim

Shape: TypeAlias = tuple[int, int, int]  # pairs, height, width


@dataclass(frozen=True)
class Reference:
    """Gray images, and what the network as trained makes of them in float32.

    Noise is that of seed 0. Where the network takes an interval, it is what the sources show around each pixel: no
    color narrows it. It follows from the images, so it is not kept.

    Attributes:
        a, b: luminances, (N, H, W) uint8.
        fused: (N, 1, H, W) float32 in [-1, 1].
        interface: of the network.
    """

    a: NDArray[np.uint8]
    b: NDArray[np.uint8]
    fused: NDArray[np.float32]
    interface: Interface

    @property
    def shape(self) -> Shape:
        """Pairs, height, width."""
        pairs, height, width = self.a.shape
        return pairs, height, width

    @property
    def inputs(self) -> dict[str, NDArray[np.float32]]:
        """As the network takes them, by name."""
        return network_inputs(self.interface, [Canvas(a, b) for a, b in zip(self.a, self.b, strict=True)])[0]


@dataclass(frozen=True)
class Limit:
    """How far an engine's images may be from float32's.

    Attributes:
        max_abs: of the luminance in [-1, 1], where a gray level is 0.0078.
        psnr: least, of the 8-bit images, in dB.
        ssim: least, of the 8-bit images.
    """

    max_abs: float
    psnr: float
    ssim: float


# Rounding in float32 reaches 5e-6, with which a pixel in some thousands falls to the next gray level. bfloat16 has 8
# bits of mantissa; with trained weights and with random ones single pixels reach 0.065, the mean 0.005 (50 dB).
# float16 has 11 bits: with trained weights single pixels reach 0.002 (68 dB), with random ones 0.0054 (61 dB); engines
# that order sums otherwise get two gray levels. int8 cuts what lies beyond its ranges, which single pixels show: with
# trained weights up to 0.13, least 39.8 dB and SSIM 0.994 calibrated on scans, 36.8 dB on phantoms (of pairs that are
# black, white or nearly so; heads have 49 dB and more); with weights made by rule 0.14, 40.7 dB, 0.986; a student
# calibrated on phantoms 0.25, 38.4 dB, 0.993.
LIMITS = {
    "float32": Limit(1e-4, 65.0, 0.9999),
    "float16": Limit(0.016, 56.0, 0.999),
    "bfloat16": Limit(0.1, 43.0, 0.98),
    "int8": Limit(0.25, 35.0, 0.97),
}


@dataclass(frozen=True)
class Parity:
    """One engine at one precision, over all inputs.

    Attributes:
        engine, precision: what ran.
        sizes: of the images that it was given, "HxW" each.
        max_abs: largest error of the luminance in [-1, 1].
        psnr: least, of the 8-bit images, in dB; infinite where they are equal.
        ssim: least, of the 8-bit images.
        objective: largest change of the hybrid objective, which is about 0.3 (see `similarity.hybrid_objective`).
    """

    engine: str
    precision: str
    sizes: tuple[str, ...]
    max_abs: float
    psnr: float
    ssim: float
    objective: float

    @property
    def within(self) -> bool:
        limit = LIMITS[self.precision]
        # NaN is beyond every limit.
        return self.max_abs <= limit.max_abs and self.psnr >= limit.psnr and self.ssim >= limit.ssim

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity and no NaN."""
        values = asdict(self) | {"sizes": list(self.sizes)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Parity:
        """What `to_dict` gave; TypeError if it is not that."""
        missing = {"psnr": math.inf} | dict.fromkeys(("max_abs", "ssim", "objective"), math.nan)
        known: dict[str, Any] = {k: missing.get(k) if v is None else v for k, v in values.items()}
        return cls(**known | {"sizes": tuple(known.get("sizes", ()))})

    def __str__(self) -> str:
        limit = LIMITS[self.precision]
        return (
            f"{self.engine}, {self.precision}, {' '.join(self.sizes)}: max abs error {self.max_abs:.1e} (limit "
            f"{limit.max_abs:g}), PSNR {self.psnr:.1f} dB (limit {limit.psnr:g}), SSIM {self.ssim:.5f} (limit "
            f"{limit.ssim:g}), objective changed by {self.objective:.1e}"
        )


def gray_levels(luminance: NDArray[Any]) -> NDArray[Any]:
    """The 8-bit image's values. NaN stays."""
    return np.rint((luminance + 1.0) * 127.5).clip(0, 255)


def compare(
    engine: str,
    precision: str,
    fused: Sequence[NDArray[Any]],
    reference: Sequence[NDArray[Any]],
    sources: Sequence[tuple[NDArray[Any], NDArray[Any]]],
) -> Parity:
    """Compare fused luminances with float32's; `sources` are what was fused. Batches (N, 1, H, W) in [-1, 1]."""
    largest, psnrs, ssims, changes = [], [], [], []
    for batch, wanted, (a, b) in zip(fused, reference, sources, strict=True):
        for n, (f, r) in enumerate(zip(batch[:, 0], wanted[:, 0], strict=True)):
            largest.append(float(np.abs(f - r).max()))
            psnrs.append(psnr(gray_levels(f), gray_levels(r)))
            ssims.append(ssim(gray_levels(f), gray_levels(r)))
            changes.append(abs(hybrid_objective(f, a[n, 0], b[n, 0]) - hybrid_objective(r, a[n, 0], b[n, 0])))
    sizes = dict.fromkeys(f"{wanted.shape[2]}x{wanted.shape[3]}" for wanted in reference)
    # numpy's, which give NaN where there is one.
    worst = (float(np.max(largest)), float(np.min(psnrs)), float(np.min(ssims)), float(np.max(changes)))
    return Parity(engine, precision, tuple(sizes), *worst)


def compare_with(engine: str, precision: str, fused: Sequence[NDArray[Any]], wanted: Sequence[Reference]) -> Parity:
    """Compare what an engine made of the references' inputs with what the network as trained makes of them."""
    inputs = [reference.inputs for reference in wanted]
    return compare(engine, precision, fused, [r.fused for r in wanted], [(given["a"], given["b"]) for given in inputs])


def check(parity: Parity, consequence: str) -> None:
    """Raise an EngineError, which ends in `consequence`, if an engine's parity is beyond its limits."""
    if not parity.within:
        raise EngineError(f"differs from the weights: {parity}; {consequence}")
