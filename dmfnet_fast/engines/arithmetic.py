"""Temporary changes to PyTorch's process-wide settings for cuDNN and cuBLAS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dmfnet_fast.errors import require

torch = require("torch", extra="torch")


@contextmanager
def arithmetic(tf32: bool = False, benchmark: bool = False, deterministic: bool = True) -> Iterator[None]:
    """Set how cuDNN and cuBLAS compute, and restore the previous settings on exit.

    The defaults give full float32 precision and deterministic results.

    Args:
        tf32: round the inputs of float32 products to 10 bits of mantissa.
        benchmark: let cuDNN time its algorithms and use the fastest.
        deterministic: use only algorithms that give the same bits on every run.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    precision = "tf32" if tf32 else "ieee"
    settings = (
        (cudnn, "benchmark", benchmark),
        (cudnn, "deterministic", deterministic),
        # PyTorch rejects allow_tf32 once a program has used fp32_precision.
        (cudnn.conv, "fp32_precision", precision),
        (matmul, "fp32_precision", precision),
        # Half-precision products are accumulated in float32.
        (matmul, "allow_fp16_reduced_precision_reduction", False),
        (matmul, "allow_bf16_reduced_precision_reduction", False),
    )
    with ExitStack() as stack:
        for owner, name, value in settings:
            before = getattr(owner, name)
            stack.callback(setattr, owner, name, before)
            setattr(owner, name, value)
        yield
