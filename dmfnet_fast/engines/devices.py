"""Names and capabilities of devices."""

from __future__ import annotations

import platform
import re
from typing import TYPE_CHECKING

from dmfnet_fast.errors import EngineError, require

if TYPE_CHECKING:
    from torch import device as Device


def check_device(name: str) -> None:
    """Raise an EngineError unless `name` is "cpu", "cuda" or "cuda:N"."""
    if not isinstance(name, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise EngineError(f"device {name!r}: use cpu, cuda or cuda:N")


def torch_device(name: str) -> Device:
    """The torch device with the name "cpu", "cuda" or "cuda:N".

    Raises:
        EngineError: `name` is none of these, or this machine has no such GPU.
        MissingExtraError: torch is not installed.
    """
    check_device(name)
    torch = require("torch", extra="torch")
    device: Device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA GPUs; "
            "check the driver and that torch is a CUDA build"
        )
    return device


def has_native_bfloat16(kind: str) -> bool:
    """Whether the hardware computes PyTorch's bfloat16 natively.

    That takes AVX512-BF16, AMX or Arm's bfloat16 instructions on a CPU, and compute capability 8.0 on a GPU.

    Args:
        kind: "cpu", or "cuda" for the current GPU.
    """
    torch = require("torch", extra="torch")
    if kind == "cuda":
        return bool(torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0))
    if platform.machine().lower() in ("aarch64", "arm64"):
        # Builds of torch without oneDNN, such as those for macOS, lack the operator.
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
