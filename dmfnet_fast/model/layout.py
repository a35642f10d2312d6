"""How the weights of a network lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def store_channels_last(net: nn.Module) -> None:
    """Store weights so that the channels of a pixel are neighbors in memory."""
    to: Callable[..., nn.Module] = net.to  # its annotations leave memory_format out
    to(memory_format=torch.channels_last)
