"""Optimization of trained networks for inference: rewrites, reduced precision, and optionally our Triton kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from dmfnet_fast.errors import require
from dmfnet_fast.model.layout import store_channels_last
from dmfnet_fast.model.network import DMFNet
from dmfnet_fast.model.rewrites import (
    PassByPass,
    avoid_concatenations,
    drop_unused_blocks,
    fold_noise_levels,
    order_channels_last,
    split_attention,
    upsample_once,
    upsample_transposed,
)
from dmfnet_fast.model.student import Student
from dmfnet_fast.precision import FloatPrecision
from dmfnet_fast.siblings import check_ours

if TYPE_CHECKING:
    from dmfnet_fast.model.fused import FusedPasses, FusedStudent

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

REWRITES: tuple[Callable[[PassByPass], None], ...] = (
    fold_noise_levels,
    upsample_transposed,
    avoid_concatenations,
    upsample_once,
    split_attention,
    order_channels_last,
)
# Our kernels replace two of the rewrites: they take unsplit attention, and two inputs in place of a concatenation.
REWRITES_BEFORE_KERNELS = tuple(r for r in REWRITES if r not in (avoid_concatenations, split_attention))


def reduce_precision(net: PassByPass | FusedPasses, precision: FloatPrecision) -> None:
    """Convert a network with folded noise levels to `precision`.

    Diffusion, the last convolution and tanh stay float32. Statistics are computed in float32 by PyTorch's GroupNorm and
    means, also of half-precision tensors, and by our kernels.
    """
    dtype = DTYPES[precision]
    # Our kernels take float32 noise biases; PyTorch's convolutions require the type of their weights.
    with_biases = [] if isinstance(net, PassByPass) else [m for m in net.modules() if "biases" in m._buffers]
    biases = [module.biases for module in with_biases]
    net.denoiser.to(dtype)
    net.fusion.to(dtype)
    net.fusion.rgb_decode1.to(torch.float32)
    for module, values in zip(with_biases, biases, strict=True):
        module.biases = values


def _require_kernels() -> None:
    """Raise a MissingExtraError if Triton or our kernels are missing."""
    require("triton", extra="gpu")
    check_ours("kernels")


def optimize(
    model: DMFNet | Student, precision: FloatPrecision = "float32", together: bool = False, kernels: bool = False
) -> PassByPass | FusedPasses | FusedStudent | Student:
    """Make an optimized copy of a trained network for inference; `model` is not changed.

    Args:
        model: the trained network, in float32, on any device. Of a student, only precision and memory layout change,
            unless `kernels` is set.
        precision: precision of the arithmetic; inputs and outputs are always float32.
        together: run the denoiser on both images in one batch, rather than one after the other.
        kernels: use our Triton kernels, for NVIDIA GPUs of compute capability 8.0 or higher. The denoiser then runs on
            all timesteps and images in one batch, regardless of `together`. On a CPU the kernels' references run.

    Returns:
        A module with the same `forward` as the model, on the model's device, in eval mode.

    Raises:
        MissingExtraError: `kernels` is set and Triton or the package `kernels` is missing.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if isinstance(model, Student):
        model.to(DTYPES[precision])
        store_channels_last(model)
        if not kernels:
            return model
        _require_kernels()
        from dmfnet_fast.model.fused import FusedStudent

        return FusedStudent(model)
    drop_unused_blocks(model)
    passes = PassByPass(model, together)
    for rewrite in REWRITES_BEFORE_KERNELS if kernels else REWRITES:
        rewrite(passes)
    net: PassByPass | FusedPasses = passes
    if kernels:
        _require_kernels()
        from dmfnet_fast.model.fused import FusedPasses

        net = FusedPasses(passes)
    reduce_precision(net, precision)
    return net.eval().requires_grad_(False)
