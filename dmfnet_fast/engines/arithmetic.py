"""How cuDNN and cuBLAS compute: process-wide settings of PyTorch, set for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dmfnet_fast.errors import require

torch = require("torch", extra="torch")


@contextmanager
def arithmetic(tf32: bool = False, benchmark: bool = False, deterministic: bool = True) -> Iterator[None]:
    """How cuDNN and cuBLAS compute meanwhile; unless told otherwise, exactly and the same every time.

    Args:
        tf32: round the inputs of float32 products to 10 bits of mantissa.
        benchmark: let cuDNN time its algorithms and take the fastest.
        deterministic: take only algorithms that give the same bits every time.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    precision = "tf32" if tf32 else "ieee"
    settings = (
        (cudnn, "benchmark", benchmark),
        (cudnn, "deterministic", deterministic),
        # Not allow_tf32, which fails once a program has used these.
        (cudnn.conv, "fp32_precision", precision),
        (matmul, "fp32_precision", precision),
        # Sums of half-precision products stay float32.
        (matmul, "allow_fp16_reduced_precision_reduction", False),
        (matmul, "allow_bf16_reduced_precision_reduction", False),
    )
    with ExitStack() as stack:
        for owner, name, value in settings:
            before = getattr(owner, name)
            stack.callback(setattr, owner, name, before)
            setattr(owner, name, value)
        yield
