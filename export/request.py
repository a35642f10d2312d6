"""What an export is asked for, and what its target is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from dmfnet_fast.engines.kinds import EngineKind
from dmfnet_fast.images.io import SMALLEST
from dmfnet_fast.images.padding import STRIDE
from dmfnet_fast.precision import Precision
from export.errors import RequestError
from export.onnx.source import Graph, Step
from export.tensorrt.builder import Profile

Tell: TypeAlias = Callable[[str], None]  # takes remarks for the user

LARGEST = 16384


@dataclass(frozen=True)
class Served:
    """How NVIDIA Triton Inference Server takes what is exported for a target.

    Attributes:
        platform: as its configuration calls the backend.
        file: name of the model's file.
        precisions: that it serves.
        options: that such an export takes, by the names of `Option`s.
        make: makes the file of a graph of one size, with what else is to be known of it, for the configuration's
            parameters. Raises as `Target.write`.
    """

    platform: str
    file: str
    precisions: tuple[Precision, ...]
    options: frozenset[str]
    make: Callable[[Request, bytes, Step, Tell], tuple[bytes, Mapping[str, str]]]


@dataclass(frozen=True)
class Target:
    """One kind of file that is exported.

    Attributes:
        name: after --target.
        kind: of the file, as engines are opened.
        words: what it is for, in --help.
        precisions: that it can have, the default one first.
        cpu_precisions: those in which the graph is the one for CPUs; in the others it is the one for engines.
        options: that its exports take, by the names of `Option`s; all take sizes.
        check_machine: raises a MissingExtraError or an EngineError, before any work is done, if this machine lacks what
            an export takes.
        write: makes the file of a graph, in a folder of its own, and moves it to its place. Raises a DMFNetError if it
            cannot be made, or is not the network; an OSError if it cannot be written.
        served: None if the server does not run it.
    """

    name: str
    kind: EngineKind
    words: str
    precisions: tuple[Precision, ...]
    cpu_precisions: tuple[Precision, ...]
    options: frozenset[str]
    check_machine: Callable[[Request], None]
    write: Callable[[Request, Graph, Path, Step, Tell], None]
    served: Served | None

    def takes(self, option: str, served: bool) -> bool:
        """Whether an export takes an option, by the name of its `Option`; `served` if it is for the server."""
        if served:
            return self.served is not None and option in self.served.options
        return option in self.options

    def has(self, precision: Precision, served: bool) -> bool:
        """Whether an export can have a precision; `served` if it is for the server."""
        if served:
            return self.served is not None and precision in self.served.precisions
        return precision in self.precisions


@dataclass(frozen=True)
class Request:
    """One export.

    Attributes:
        source: weights (.safetensors), or an .onnx file that this command made.
        target: what to make.
        precision: of its arithmetic.
        profile: of an engine, or of a served model. An ONNX file takes any batch and size; for one, sizes for which it
            gets float32 results to compare engines with, beside the usual ones, or None.
        gpus: of a TensorRT-RTX engine.
        plugins: whether a TensorRT engine contains our kernels.
        timing_cache: of TensorRT.
        calibrate: folder of pairs that ranges for int8 are taken from; None takes phantoms.
        every_block: whether int8 is for the first and the last block too.
        server: folder of models for Triton Inference Server to write to, in place of `output`.
        output: file to write.
    """

    source: Path
    target: Target
    precision: Precision
    profile: Profile | None
    gpus: tuple[str, ...]
    plugins: bool
    timing_cache: Path | None
    calibrate: Path | None
    every_block: bool
    server: Path | None
    output: Path

    def takes(self, option: str) -> bool:
        """Whether this export takes an option, by the name of its `Option`."""
        return self.target.takes(option, self.server is not None)

    def __str__(self) -> str:
        lines = [f"source     {self.source}", f"target     {self.target.name}", f"precision  {self.precision}"]
        any_size = "any multiple of 16 from 64 on, any batch"
        lines.append(f"sizes      {self.profile if self.takes('batch') else any_size}")
        if self.takes("gpu"):
            lines.append(f"GPUs       {', '.join(self.gpus)}")
        elif "cpu" not in self.target.kind.support:
            lines.append("GPU        the one that it is built on")
        if self.takes("plugins"):
            lines.append(f"plugins    {'yes' if self.plugins else 'no'}")
        if self.precision == "int8":
            lines.append(f"8 bits     {'every block' if self.every_block else 'all blocks but the first and the last'}")
            lines.append(f"calibrated {'with phantoms' if self.calibrate is None else f'on {self.calibrate}'}")
        if self.timing_cache is not None:
            lines.append(f"timings    {self.timing_cache}")
        lines.append(f"writes     {self.output}")
        return "\n".join(lines)


def shipped_graph(weights: Path) -> Path:
    """The float16 graph that ships beside the weights file of a small network."""
    return weights.with_name(f"{weights.stem}-fp16.onnx")


def parse_size(text: str, option: str) -> tuple[int, int]:
    """ "256" or "256x320", height first, as (height, width).

    Raises:
        RequestError: it is no size, or none that the network takes.
    """
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip())
    if match is None:
        raise RequestError(f"{option} {text}: give HEIGHTxWIDTH, such as 256x320, or one number for a square")
    height, width = int(match[1]), int(match[2] or match[1])
    if any(size % STRIDE or not SMALLEST <= size <= LARGEST for size in (height, width)):
        raise RequestError(f"{option} {text}: height and width must be multiples of {STRIDE}, {SMALLEST} to {LARGEST}")
    return height, width


def make_profile(size: str | None, least: str | None, best: str | None, most: str | None, batch: int) -> Profile:
    """The profile of one size, or of a range of them.

    Raises:
        RequestError: they contradict each other.
    """
    if size is not None and (least or best or most):
        raise RequestError("--size is one size, --min, --opt and --max are a range: give one or the other")
    if (least is None) != (most is None) or (best is not None and most is None):
        raise RequestError("--min, --opt, --max: give --min and --max; --opt is that which should be fastest")
    if least is None or most is None:
        one = parse_size(size or "256", "--size")
        return Profile((1, *one), (batch, *one), (batch, *one))
    low, high = parse_size(least, "--min"), parse_size(most, "--max")
    middle = parse_size(best, "--opt") if best else high
    for small, small_name, large, large_name in ((low, "--min", middle, "--opt"), (middle, "--opt", high, "--max")):
        if small[0] > large[0] or small[1] > large[1]:
            raise RequestError(
                f"{small_name} {small[0]}x{small[1]} is larger than {large_name} {large[0]}x{large[1]}: "
                "--min, --opt and --max must ascend in height and in width"
            )
    return Profile((1, *low), (batch, *middle), (batch, *high))
