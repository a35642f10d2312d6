"""Where torch computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmfnet_fast.errors import EngineError, require

if TYPE_CHECKING:
    from torch import device as Device


def torch_device(name: str) -> Device:
    """The torch device called `name`: "cpu", "cuda" or "cuda:N".

    Raises:
        EngineError: it is none of those, or this machine has no such GPU.
        MissingExtraError: torch is not installed.
    """
    torch = require("torch", extra="torch")
    try:
        device: Device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise EngineError(f"device {name!r}: use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise EngineError(f"device {name!r}: use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"device {name!r}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA GPUs; "
            "check the driver and that torch is a CUDA build"
        )
    return device
