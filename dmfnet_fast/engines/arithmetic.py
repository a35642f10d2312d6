"""Temporary changes to PyTorch's process-wide settings for cuDNN and cuBLAS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from dmfnet_fast.errors import require

torch = require("torch", extra="torch")

_EXACT = "ieee"


def _float32_settings() -> tuple[Any, ...]:
    """The owners of `fp32_precision`, per operation, that one of PyTorch's two older settings covers as well."""
    backends = torch.backends
    return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul


def _allows_tf32() -> bool:
    """The value of `cudnn.allow_tf32` while convolutions and RNNs are exact: reading it raises if it is true."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return True


@contextmanager
def _float32_products(tf32: bool) -> Iterator[None]:
    """Set the precision of float32 products.

    PyTorch has two sets of settings: `fp32_precision` of each operation, and the older `cudnn.allow_tf32`,
    `cuda.matmul.allow_tf32` and `float32_matmul_precision`. It keeps the older values apart and raises an error when
    one is read that contradicts the new values, in any thread, also inside `torch.compile`. Writing an older setting
    changes the new ones too, but for cuDNN to a value that more general settings override. So both are written, the
    older ones first.
    """
    settings = _float32_settings()
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = _EXACT
    # Only now do reads never fail, whatever mixture the program has made.
    allowed, matmul = _allows_tf32(), torch.get_float32_matmul_precision()

    def write(allow_tf32: bool, matmul_precision: str, precisions: list[str]) -> None:
        torch.backends.cudnn.allow_tf32 = allow_tf32
        torch.set_float32_matmul_precision(matmul_precision)
        for setting, precision in zip(settings, precisions, strict=True):
            setting.fp32_precision = precision

    try:
        write(tf32, "high" if tf32 else "highest", ["tf32" if tf32 else _EXACT] * len(settings))
        yield
    finally:
        write(allowed, matmul, before)


@contextmanager
def arithmetic(tf32: bool = False, benchmark: bool = False, deterministic: bool = True) -> Iterator[None]:
    """Set how cuDNN and cuBLAS compute, and restore the previous settings on exit.

    The defaults give full float32 precision and deterministic results. The settings are those of the process: they
    hold in all threads. Matrix products on the CPU follow `tf32` too, because PyTorch ties them to those on the GPU.

    Args:
        tf32: round the inputs of float32 products to 10 bits of mantissa.
        benchmark: let cuDNN time its algorithms and use the fastest.
        deterministic: use only algorithms that give the same bits on every run.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    settings = (
        (cudnn, "benchmark", benchmark),
        (cudnn, "deterministic", deterministic),
        # Half-precision products are accumulated in float32.
        (matmul, "allow_fp16_reduced_precision_reduction", False),
        (matmul, "allow_bf16_reduced_precision_reduction", False),
    )
    with ExitStack() as stack:
        stack.enter_context(_float32_products(tf32))
        for owner, name, value in settings:
            before = getattr(owner, name)
            stack.callback(setattr, owner, name, before)
            setattr(owner, name, value)
        yield
