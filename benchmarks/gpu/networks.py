"""Networks with their inputs and reference images, and the check of optimized networks against trained ones."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.gpu.machine import Machine
from benchmarks.variants import as_trained, gigaflop, network
from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.network_inputs import network_inputs
from dmfnet_fast.artifacts.parity import LIMITS as ENGINE_LIMITS
from dmfnet_fast.artifacts.parity import Limit, Reference, gray_levels
from dmfnet_fast.engines.arithmetic import arithmetic
from dmfnet_fast.engines.base import some_pairs
from dmfnet_fast.engines.cuda_graph import CapturedFusion
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.metrics.similarity import psnr
from dmfnet_fast.model import Network, optimize
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.precision import FloatPrecision
from export.verify import STANDARD_SHAPES, phantom_pairs
from tests.synthetic_weights import GOLDEN, golden_model

Array: TypeAlias = NDArray[np.float32]
Arrays: TypeAlias = dict[str, Array]  # by the names of a network's inputs

# Kernels of PyTorch and ours sum in float32, while TensorRT's engines are granted sums in float16.
_FLOAT32_SUMS = Limit(0.016, 0.016, 56.0, 0.999)
# TF32 only rounds the inputs of products, to the mantissa of float16.
LIMITS = ENGINE_LIMITS | {"float16": _FLOAT32_SUMS, "tf32": _FLOAT32_SUMS}
GOLDEN_FILES = ("golden_64", "golden_64x96")
PRECISIONS: tuple[FloatPrecision, ...] = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Quality:
    """Differences of images from those of the trained network in float32.

    Attributes:
        precision: a key of LIMITS.
        max_abs, mean_abs: absolute errors of the luminance in [-1, 1].
        psnr: PSNR of the 8-bit images in dB; infinite if they are equal.
    """

    precision: str
    max_abs: float
    mean_abs: float
    psnr: float

    @classmethod
    def of(cls, precision: str, fused: list[Array], reference: list[Array]) -> Quality:
        together, wanted = (np.concatenate([batch.ravel() for batch in batches]) for batches in (fused, reference))
        errors = np.abs(together - wanted)
        quality = psnr(gray_levels(together), gray_levels(wanted))
        return cls(precision, float(errors.max()), float(errors.mean()), quality)

    @property
    def within(self) -> bool:
        limit = LIMITS[self.precision]
        return self.max_abs <= limit.max_abs and self.psnr >= limit.psnr

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON, with None for an infinite PSNR."""
        psnr = self.psnr if math.isfinite(self.psnr) else None
        return {"max_abs": self.max_abs, "mean_abs": self.mean_abs, "psnr": psnr}

    def __str__(self) -> str:
        limit = LIMITS[self.precision]
        return (
            f"max abs error {self.max_abs:.2g} (limit {limit.max_abs:g}), "
            f"PSNR {self.psnr:.1f} dB (limit {limit.psnr:g}) in {self.precision}"
        )


@dataclass(frozen=True)
class Case:
    """A batch of `batch` size x size pairs, fused at once by the network named `network`."""

    network: str
    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.network} {self.size}x{self.size} batch {self.batch}"


SINGLE_PAIRS = tuple(Case(name, 256, 1) for name in ("base", "turbo", "nano"))
BATCHES = tuple(Case(name, 256, batch) for batch in (8, 32) for name in ("base", "turbo", "nano"))
LARGE = tuple(Case(name, 512, 1) for name in ("base", "turbo", "nano"))
INTERPRETED_CASE = Case("tiny", 64, 1)


@dataclass
class Networks:
    """Networks, inputs and reference images, each made once."""

    machine: Machine
    _trained: dict[str, Network] = field(default_factory=dict)
    _optimized: dict[tuple[str, FloatPrecision, bool], nn.Module] = field(default_factory=dict)
    _inputs: dict[Case, Arrays] = field(default_factory=dict)
    _references: dict[Case, Array] = field(default_factory=dict)

    def trained(self, name: str) -> Network:
        """The trained network on the CPU; "golden" is base with the golden files' weights."""
        if name not in self._trained:
            self._trained[name] = (golden_model() if name == "golden" else network(name)).eval()
        return self._trained[name]

    def optimized(self, name: str, precision: FloatPrecision, kernels: bool) -> nn.Module:
        """Optimized as the engine does it, but on the device, where that takes less time."""
        key = name, precision, kernels
        if key not in self._optimized:
            trained = copy.deepcopy(self.trained(name)).to(self.machine.device)
            self._optimized[key] = optimize(trained, precision, together=True, kernels=kernels)
        return copy.deepcopy(self._optimized[key])

    def tensors(self, arrays: Arrays) -> dict[str, Tensor]:
        return {name: torch.tensor(array, device=self.machine.device) for name, array in arrays.items()}

    def inputs(self, case: Case) -> Arrays:
        """Phantom pairs, all different."""
        if case not in self._inputs:
            heads = [make_phantom(seed, case.size) for seed in range(case.batch)]
            interface = interface_of(self.trained(case.network).config.to_dict())
            self._inputs[case] = network_inputs(interface, [Canvas(head.mri, head.other("PET")) for head in heads])[0]
        return self._inputs[case]

    def reference(self, case: Case) -> Array:
        """The published network's images in float32 without TF32, computed pair by pair to save memory."""
        if case not in self._references:
            net = as_trained(self.trained(case.network)).to(self.machine.device)
            alone = [some_pairs(self.inputs(case), slice(n, n + 1)) for n in range(case.batch)]
            with arithmetic(), torch.inference_mode():
                pairs = [net(**self.tensors(arrays)).cpu() for arrays in alone]
            self._references[case] = torch.cat(pairs).numpy()
        return self._references[case]

    def floor(self, case: Case) -> float:
        """Milliseconds for the optimized network's arithmetic at the measured rate of float16 matrix products."""
        return gigaflop(case.network, case.size) * case.batch * 1e12 / self.machine.matrix_rates["float16"]


def checked_weights(machine: Machine) -> tuple[str, ...]:
    return ("tiny", "nano") if machine.interpreted else ("turbo", "nano", "base", "golden", "tiny")


def _check_inputs(weights: str, networks: Networks) -> tuple[list[Arrays], list[Array]]:
    """Inputs for a check, and the trained network's images in float32."""
    batches: list[Arrays] = []
    images: list[Array] = []
    if weights == "golden":
        for name in GOLDEN_FILES:
            with np.load(GOLDEN / f"{name}.npz") as file:
                batches.append({"a": file["a"][None, None], "b": file["b"][None, None], "noise": file["noise"]})
                images.append(file["fused"][None, None])
        return batches, images
    model = copy.deepcopy(networks.trained(weights)).to(networks.machine.device)
    shapes = STANDARD_SHAPES[: 1 if networks.machine.interpreted else 2]
    interface = interface_of(model.config.to_dict())
    batches += [Reference(a, b, np.empty(0, np.float32), interface).inputs for a, b in map(phantom_pairs, shapes)]
    with torch.inference_mode():
        images += [model(**networks.tensors(arrays)).cpu().numpy() for arrays in batches]
    return batches, images


def _repeated(net: nn.Module, arrays: Arrays, captured: bool, networks: Networks) -> list[Array]:
    """Fuses the same inputs repeatedly; captured, twice on one stream and twice on two."""
    if captured:
        device = networks.machine.device
        shapes = {name: x.shape for name, x in arrays.items()}
        graphs = [CapturedFusion(net, shapes, device, side=side) for side in (None, torch.cuda.Stream(device))]
        return [graph.run(arrays) for graph in graphs for _ in range(2)]
    with torch.inference_mode():
        return [net(**networks.tensors(arrays)).cpu().numpy() for _ in range(2)]


def check(weights: str, precision: FloatPrecision, captured: bool, networks: Networks) -> dict[str, Any]:
    """One row: the optimized network on the kernels beside the network as trained, each input fused repeatedly.

    Args:
        captured: run as a CUDA graph, like the engine, instead of launch by launch.
    """
    with arithmetic():
        batches, reference = _check_inputs(weights, networks)
        net = networks.optimized(weights, precision, kernels=True)
        fused = [_repeated(net, arrays, captured, networks) for arrays in batches]
    quality = Quality.of(precision, [images[0] for images in fused], reference)
    same = all(np.array_equal(images[0], image) for images in fused for image in images[1:])
    return {**quality.to_dict(), "same_bits": same, "within": quality.within and same}
