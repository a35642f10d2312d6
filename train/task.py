"""What the training loop asks of a stage."""

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
    """The randomness of one step, the same in every process, and this process's share of its batch.

    Whoever draws for the whole batch and then takes the share trains the same way on any number of processes.
    """

    random: np.random.Generator
    generator: torch.Generator
    share: slice

    def upload(self, values: NDArray[Any]) -> Tensor:
        """A copy on the device, made without waiting for what a GPU has still to do."""
        tensor, device = torch.from_numpy(values), self.generator.device
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, on the device."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)


class Task(ABC):
    """One stage: what it trains, on what loss, and how that is judged.

    Attributes:
        name: of the stage's files in the run's folder, and in the record.
        label: of the progress bar.
        network: what is trained.
        identity: all that the result depends on, in plain types.
    """

    name: str
    label: str
    network: nn.Module
    identity: dict[str, Any]

    @abstractmethod
    def loss(self, network: nn.Module, draw: Draw) -> Tensor:
        """The mean loss of this process's share of a new batch; `network` is the trained one as prepared to run."""

    @abstractmethod
    def validate(self, part: int, parts: int) -> Tensor:
        """Sums over every `parts`-th validation pair from number `part`: (scores, 2) float64, value and count."""

    @property
    @abstractmethod
    def scores(self) -> list[str]:
        """Names of the rows of `validate`; empty if there is nothing to validate on."""

    @abstractmethod
    def images(self) -> NDArray[np.uint8]:
        """What the network makes of some validation pairs, (H, W, 3), to look at."""
