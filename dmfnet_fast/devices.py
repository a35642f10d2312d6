"""Where the network is computed."""

from __future__ import annotations

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
    """The torch device called `name`: "cpu", "cuda" or "cuda:N".

    Raises:
        EngineError: it is none of those, or this machine has no such GPU.
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
