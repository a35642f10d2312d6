"""The options of `dmfnet-fuse` that are the engine's and the rules', for images and volumes alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dmfnet_fast.fuser import Fuser
from dmfnet_fast.precision import PrecisionChoice


@dataclass(frozen=True)
class EngineOptions:
    """As for `Fuser`."""

    engine: str
    device: str | None
    precision: PrecisionChoice
    threads: int | None
    seed: int
    keep_chroma: float
    allow_invention: bool

    @property
    def rules(self) -> dict[str, Any]:
        """The rules for every pixel, as the arguments of `Fuser`."""
        return {"keep_chroma": self.keep_chroma, "allow_invention": self.allow_invention}

    def open(self) -> Fuser:
        """Open the engine; for errors see `Fuser`."""
        return Fuser(
            self.engine, self.seed, device=self.device, precision=self.precision, threads=self.threads, **self.rules
        )
