"""Options of commands that are the engine's and the rules'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from dmfnet_fast.engines.kinds import default_devices
from dmfnet_fast.fuser import Fuser
from dmfnet_fast.precision import PRECISION_CHOICES, PrecisionChoice

Function = TypeVar("Function", bound=Callable[..., Any])


def machine_options(function: Function) -> Function:
    """Decorator that adds what says how an engine runs on the machine: --device, --precision and --threads."""
    for option in (
        click.option("--threads", type=click.IntRange(1), help="CPU threads."),
        click.option(
            "--precision",
            default="auto",
            type=click.Choice(PRECISION_CHOICES),
            help="Precision of the arithmetic; auto is the fastest.",
        ),
        click.option("--device", help=f"cpu, cuda or cuda:N; by default {default_devices()}."),
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class EngineOptions:
    """What `dmfnet-fuse` gives to `Fuser`, for images and volumes alike."""

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
