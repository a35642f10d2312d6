"""A trained network made ready for inference: rewritten, in a precision, on PyTorch's operators or our kernels."""

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
# Our kernels take what two of the rewrites would take apart.
REWRITES_BEFORE_KERNELS = tuple(r for r in REWRITES if r not in (avoid_concatenations, split_attention))


def reduce_precision(net: PassByPass | FusedPasses, precision: FloatPrecision) -> None:
    """Compute in half precision, once noise levels are folded; diffusion, last convolution and tanh stay float32.

    PyTorch's GroupNorm and means of half-precision tensors, and our kernels, keep their statistics in float32.
    """
    dtype = DTYPES[precision]
    # Our kernels take the noise biases as they are; PyTorch's convolutions want them in their own type.
    exact = [] if isinstance(net, PassByPass) else [m for m in net.modules() if "biases" in m._buffers]
    biases = [module.biases for module in exact]
    net.denoiser.to(dtype)
    net.fusion.to(dtype)
    net.fusion.rgb_decode1.to(torch.float32)
    for module, values in zip(exact, biases, strict=True):
        module.biases = values


def _require_kernels() -> None:
    """Raise a MissingExtraError unless our kernels, and Triton that they need, can be imported."""
    require("triton", extra="gpu")
    check_ours("kernels")


def optimize(
    model: DMFNet | Student, precision: FloatPrecision = "float32", together: bool = False, kernels: bool = False
) -> PassByPass | FusedPasses | FusedStudent | Student:
    """The same network for inference, rewritten; `model` stays as it is.

    Args:
        model: as trained, float32, on any device. A student has nothing to rewrite but its precision.
        precision: of the arithmetic. Inputs and outputs are float32 in any case.
        together: give both images to the denoiser as one batch, rather than one after the other.
        kernels: compute with our Triton kernels, for NVIDIA GPUs of compute capability 8.0 and later; all passes go
            through the denoiser as one batch then, whatever `together` says. On a CPU their references are run.

    Returns:
        A module with the model's forward, on its device, in eval mode.

    Raises:
        MissingExtraError: `kernels` without Triton.
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
