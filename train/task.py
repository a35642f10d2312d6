"""Interface between the training loop and a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class Draw:
    """Randomness of one step, the same in every process, and this process's share of the batch.

    A task that draws for the whole batch and then takes its share trains the same way on any number of processes.

    Attributes:
        random: generator on the CPU.
        generator: generator on the device.
        share: this process's part of the batch.
    """

    random: np.random.Generator
    generator: torch.Generator
    share: slice

    def upload(self, values: NDArray[Any]) -> Tensor:
        """Copies `values` to the device, without waiting for a GPU's pending work."""
        tensor, device = torch.from_numpy(values), self.generator.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    def normal(self, *shape: int) -> Tensor:
        """Draws standard normal numbers on the device."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)


class Task(ABC):
    """One stage: its network, loss and validation.

    Attributes:
        name: prefix of the stage's files in the run's folder, and key of its record.
        label: label of the progress bar.
        network: the network to train.
        identity: everything that the result depends on, in plain types.
    """

    name: str
    label: str
    network: nn.Module
    identity: dict[str, Any]

    @abstractmethod
    def loss(self, network: nn.Module, draw: Draw) -> Tensor:
        """Mean loss of this process's share of a batch; `network` is `self.network`, wrapped or compiled if need be."""

    @abstractmethod
    def validate(self, part: int, parts: int) -> Tensor:
        """Sums over validation pairs `part`, `part + parts`, ...: (scores, 2) float64, of values and of counts."""

    @property
    @abstractmethod
    def scores(self) -> list[str]:
        """Names of the rows of `validate`; empty if there is nothing to validate on."""

    @abstractmethod
    def images(self) -> NDArray[np.uint8]:
        """An overview of the network's results on some validation pairs, (H, W, 3)."""
