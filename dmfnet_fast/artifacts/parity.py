"""Parity: how closely an engine reproduces the trained network in float32, and the limits for each precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.artifacts.network_inputs import network_inputs, pixel_inputs
from dmfnet_fast.errors import EngineError
from dmfnet_fast.images.color import DEFAULT_RULES, Canvas
from dmfnet_fast.images.rules import neighborhood_interval
from dmfnet_fast.metrics.similarity import hybrid_objective, psnr, ssim

PERCENTILE = 0.999
_HALF_LEVEL = 0.4999  # a little less, so that what is rounded again gives the same level
Shape: TypeAlias = tuple[int, int, int]  # image pairs, height, width


@dataclass(frozen=True)
class Reference:
    """Gray images, and the result of the trained network on them in float32.

    The noise is that of seed 0. The interval, for networks that take it, spans both sources in each pixel's
    neighborhood; as the images are gray, no color narrows it. It is computed from the images and not stored.

    Attributes:
        a, b: luminances, (N, H, W) uint8.
        fused: result of the network, (N, 1, H, W) float32 in [-1, 1].
        interface: interface of the network.
    """

    a: NDArray[np.uint8]
    b: NDArray[np.uint8]
    fused: NDArray[np.float32]
    interface: Interface

    @property
    def shape(self) -> Shape:
        """Number of image pairs, height and width."""
        pairs, height, width = self.a.shape
        return pairs, height, width

    @property
    def inputs(self) -> dict[str, NDArray[np.float32]]:
        """The network's inputs, by name."""
        return network_inputs(self.interface, [Canvas(a, b) for a, b in zip(self.a, self.b, strict=True)])[0]

    @property
    def pixel_inputs(self) -> dict[str, NDArray[Any]]:
        """The inputs of the same network of pixels, with the default rules."""
        return pixel_inputs(replace(self.interface, pixels=True), self.a, self.b, DEFAULT_RULES)

    def nearest(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The luminances nearest to `fused` that the rules and rounding turn into these gray levels.

        A network of pixels shows its luminances only in 8 bits. Its errors are at least those of the result.

        Args:
            pixels: gray levels (N, H, W), fused from a and b with the default rules.

        Returns:
            (N, 1, H, W) float32.
        """
        levels = pixels.astype(np.float64)
        near = neighborhood_interval(self.a, self.b)
        # All that lies beyond an end of the interval becomes that end.
        lowest = np.where(pixels <= near.lowest, -np.inf, levels - _HALF_LEVEL)
        highest = np.where(pixels >= near.highest, np.inf, levels + _HALF_LEVEL)
        wanted = (self.fused[:, 0].astype(np.float64) + 1) * 127.5
        return (np.clip(wanted, lowest, highest) / 127.5 - 1).astype(np.float32)[:, None]


@dataclass(frozen=True)
class Limit:
    """How far an engine's results may deviate from those in float32.

    Attributes:
        max_abs: largest absolute error of the luminance in [-1, 1], where a gray level is 0.0078.
        percentile: largest 99.9th percentile of the absolute errors of an image.
        psnr: least PSNR of the 8-bit images, in dB.
        ssim: least SSIM of the 8-bit images.
    """

    max_abs: float
    percentile: float
    psnr: float
    ssim: float


# Measured deviations behind the limits:
# - float32: rounding reaches 5e-6, which moves one pixel in several thousand to the next gray level.
# - float16 (11-bit significand), emulated as GPUs compute it (export.emulation): with sums in float32, single pixels
#   reach 0.0063 and percentiles 0.0029; with sums in float16, 0.008 and 0.005. Heads have at least 64 dB and SSIM
#   0.9997, in float16 59 dB and 0.9994; full contrast between single lines is the worst, with 59 dB and 0.9993, in
#   float16 56 dB and 0.9987. Trained weights and random ones differ little. Engines sum in other orders, and single
#   pixels depend on which of two almost equal values is the larger, so those are granted more than the rest.
# - bfloat16 (8-bit significand): single pixels reach 0.065 and the mean is 0.005 (50 dB), with trained weights and with
#   random ones.
# - int8 clips values beyond its calibrated ranges, which affects single pixels. With trained weights: up to 0.13, at
#   least 39.8 dB and SSIM 0.994 when calibrated on scans, and 36.8 dB when calibrated on phantoms (for pairs that are
#   black, white or nearly so; heads have 49 dB or more). With synthetic weights: 0.14, 40.7 dB and 0.986. A student
#   calibrated on phantoms: 0.25, 38.4 dB and 0.993.
LIMITS = {
    "float32": Limit(1e-4, 1e-4, 65.0, 0.9999),
    "float16": Limit(0.05, 0.016, 52.0, 0.997),
    "bfloat16": Limit(0.1, 0.1, 43.0, 0.98),
    "int8": Limit(0.25, 0.25, 35.0, 0.97),
}


@dataclass(frozen=True)
class Parity:
    """Worst deviations of one engine at one precision from the reference, over all inputs.

    Attributes:
        engine, precision: the engine and the precision that were verified.
        sizes: sizes of the images, each as "HxW".
        max_abs: largest absolute error of the luminance in [-1, 1].
        percentile: largest 99.9th percentile of the absolute errors of an image.
        psnr: least PSNR of the 8-bit images, in dB; infinite if all are equal.
        ssim: least SSIM of the 8-bit images.
        objective: largest change of the hybrid objective, which is about 0.3 (see `similarity.hybrid_objective`).
    """

    engine: str
    precision: str
    sizes: tuple[str, ...]
    max_abs: float
    percentile: float
    psnr: float
    ssim: float
    objective: float

    @property
    def within(self) -> bool:
        """Whether all deviations are within the limits of the precision; NaN never is."""
        limit = LIMITS[self.precision]
        errors = self.max_abs <= limit.max_abs and self.percentile <= limit.percentile
        return errors and self.psnr >= limit.psnr and self.ssim >= limit.ssim

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON, in which None replaces infinity and NaN."""
        values = asdict(self) | {"sizes": list(self.sizes)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Parity:
        """Restore the result of `to_dict`. Raises a TypeError if a value is missing or unknown."""
        missing = {"psnr": math.inf} | dict.fromkeys(("max_abs", "percentile", "ssim", "objective"), math.nan)
        known: dict[str, Any] = {k: missing.get(k) if v is None else v for k, v in values.items()}
        return cls(**known | {"sizes": tuple(known.get("sizes", ()))})

    def __str__(self) -> str:
        limit = LIMITS[self.precision]
        return (
            f"{self.engine}, {self.precision}, {' '.join(self.sizes)}: max abs error {self.max_abs:.1e} (limit "
            f"{limit.max_abs:g}), 99.9th percentile {self.percentile:.1e} (limit {limit.percentile:g}), PSNR "
            f"{self.psnr:.1f} dB (limit {limit.psnr:g}), SSIM {self.ssim:.5f} (limit {limit.ssim:g}), objective "
            f"changed by {self.objective:.1e}"
        )


def gray_levels(luminance: NDArray[Any]) -> NDArray[Any]:
    """Convert luminances in [-1, 1] to integral gray levels 0..255, as floats; NaN is preserved."""
    return np.rint((luminance + 1.0) * 127.5).clip(0, 255)


def compare(
    engine: str,
    precision: str,
    fused: Sequence[NDArray[Any]],
    reference: Sequence[NDArray[Any]],
    sources: Sequence[tuple[NDArray[Any], NDArray[Any]]],
) -> Parity:
    """Compare an engine's results with those in float32.

    Args:
        engine, precision: the engine and the precision, for the result.
        fused: the engine's results, as batches (N, 1, H, W) in [-1, 1].
        reference: the corresponding float32 results.
        sources: the corresponding batches of a and b.
    """
    largest, percentiles, psnrs, ssims, changes = [], [], [], [], []
    for batch, expected, (a, b) in zip(fused, reference, sources, strict=True):
        for n, (f, r) in enumerate(zip(batch[:, 0], expected[:, 0], strict=True)):
            largest.append(float(np.abs(f - r).max()))
            percentiles.append(float(np.quantile(np.abs(f - r), PERCENTILE)))
            psnrs.append(psnr(gray_levels(f), gray_levels(r)))
            ssims.append(ssim(gray_levels(f), gray_levels(r)))
            changes.append(abs(hybrid_objective(f, a[n, 0], b[n, 0]) - hybrid_objective(r, a[n, 0], b[n, 0])))
    sizes = dict.fromkeys(f"{expected.shape[2]}x{expected.shape[3]}" for expected in reference)
    # numpy's reductions propagate NaN, Python's min and max do not.
    errors = float(np.max(largest)), float(np.max(percentiles))
    similarities = float(np.min(psnrs)), float(np.min(ssims))
    return Parity(engine, precision, tuple(sizes), *errors, *similarities, float(np.max(changes)))


def result_of(engine: Any, reference: Reference) -> NDArray[np.float32]:
    """The luminances (N, 1, H, W) that an `Engine` makes of a reference; of pixels, see `Reference.nearest`."""
    if not engine.interface.pixels:
        fused: NDArray[np.float32] = engine.run(reference.inputs)
        return fused
    return reference.nearest(engine.fuse_pixels(reference.a, reference.b, DEFAULT_RULES, 0))


def compare_with(engine: str, precision: str, fused: Sequence[NDArray[Any]], wanted: Sequence[Reference]) -> Parity:
    """Compare an engine's results on the inputs of the references `wanted` with those of the trained network."""
    inputs = [reference.inputs for reference in wanted]
    return compare(engine, precision, fused, [r.fused for r in wanted], [(given["a"], given["b"]) for given in inputs])


def check(parity: Parity, consequence: str) -> None:
    """Raise an EngineError, whose message ends in `consequence`, if an engine's parity is outside its limits."""
    if not parity.within:
        raise EngineError(f"differs from the weights: {parity}; {consequence}")
