"""Export requests, and what a target is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from dmfnet_fast.artifacts.interface import IMAGES_TAKEN
from dmfnet_fast.engines.kinds import EngineKind
from dmfnet_fast.images.padding import SMALLEST, STRIDE
from dmfnet_fast.precision import Precision
from export.errors import RequestError
from export.onnx.source import Graph, Step
from export.tensorrt.builder import Profile

Tell: TypeAlias = Callable[[str], None]  # shows a remark to the user

LARGEST = 16384  # largest height and width of an engine


@dataclass(frozen=True)
class Served:
    """How a target exports models for one backend of NVIDIA Triton Inference Server.

    Attributes:
        backend: value of --backend.
        precisions: precisions that the backend runs.
        options: names of the `Option`s that such an export accepts.
        one_size: whether a model takes images of one size only.
        write: makes the model's folder within the given one and moves it to the output path; as `Target.write`.
    """

    backend: str
    precisions: tuple[Precision, ...]
    options: frozenset[str]
    one_size: bool
    write: Callable[[Request, Graph, Path, Step, Tell], None]


@dataclass(frozen=True)
class Target:
    """One kind of file to export to.

    Attributes:
        name: value of --target.
        kind: kind of engine that opens the file.
        words: its purpose, for --help.
        precisions: supported precisions, the default one first.
        cpu_precisions: precisions whose graph is the one for CPUs; the others use the graph for TensorRT engines.
        options: names of the `Option`s that an export accepts; every target accepts sizes.
        check_machine: raises a MissingExtraError or an EngineError, before any work is done, if this machine lacks
            something that the export needs.
        write: makes the file from a graph in the given folder and moves it to the output path. Raises a DMFNetError if
            the file cannot be made or does not compute what the network does, and an OSError if it cannot be written.
        served: how the target exports for each backend of the server that runs it, the default one first.
    """

    name: str
    kind: EngineKind | None
    words: str
    precisions: tuple[Precision, ...]
    cpu_precisions: tuple[Precision, ...]
    options: frozenset[str]
    check_machine: Callable[[Request], None]
    write: Callable[[Request, Graph, Path, Step, Tell], None]
    served: tuple[Served, ...]


@dataclass(frozen=True)
class Request:
    """One export.

    Attributes:
        source: weights (.safetensors), or an .onnx file made by dmfnet-export.
        target: kind of file to make.
        precision: precision of the arithmetic.
        profile: batches and sizes of an engine or a served model. An ONNX file takes any batch and size; for it, the
            profile adds sizes to the standard ones for which the file stores float32 results to compare engines with.
            None adds none.
        gpus: architectures that a TensorRT-RTX engine is built for, such as "sm_89".
        plugins: whether a TensorRT engine contains our kernels.
        pixels: whether the file takes and gives 8-bit images.
        timing_cache: TensorRT's timing cache file, read and written; None for none.
        workspace: most MiB of scratch memory for a layer of a TensorRT engine; None for the default.
        no_check: whether an engine whose results differ from the network's is kept.
        calibrate: folder of calibration pairs for int8; None uses phantoms.
        every_block: whether int8 includes the first and the last block.
        single_file: whether a page is one file instead of a folder.
        served: the backend of Triton Inference Server to export for, or None.
        output: file to write; with `served`, the model's folder in the repository.
    """

    source: Path
    target: Target
    precision: Precision
    profile: Profile | None
    gpus: tuple[str, ...]
    plugins: bool
    pixels: bool
    timing_cache: Path | None
    workspace: int | None
    no_check: bool
    calibrate: Path | None
    every_block: bool
    single_file: bool
    served: Served | None
    output: Path

    @property
    def name(self) -> str:
        """Name of the network: that of the source's file, without the prefix of shipped ones."""
        return self.source.stem.removeprefix("dmfnet-")

    def takes(self, option: str) -> bool:
        """Whether this export accepts the `Option` with this name."""
        return option in (self.served or self.target).options

    def __str__(self) -> str:
        lines = [f"source     {self.source}", f"target     {self.target.name}", f"precision  {self.precision}"]
        any_size = "any multiple of 16 from 64 on, any batch"
        if self.served is not None:
            lines.append(f"backend    {self.served.backend}")
        if self.served is not None and not self.served.one_size:
            assert self.profile is not None
            lines.append(f"sizes      any from {SMALLEST}x{SMALLEST} on, 1 to {self.profile.max[0]} pairs at once")
        else:
            lines.append(f"sizes      {self.profile if self.takes('batch') else any_size}")
        if self.takes("gpu"):
            lines.append(f"GPUs       {', '.join(self.gpus)}")
        elif self.target.kind is not None and "cpu" not in self.target.kind.support:
            lines.append("GPU        the one that it is built on")
        if self.takes("plugins"):
            lines.append(f"plugins    {'yes' if self.plugins else 'no'}")
        if self.pixels:
            lines.append(f"images     {IMAGES_TAKEN[True]}")
        if self.precision == "int8":
            lines.append(f"8 bits     {'every block' if self.every_block else 'all blocks but the first and the last'}")
            lines.append(f"calibrated {'with phantoms' if self.calibrate is None else f'on {self.calibrate}'}")
        if self.timing_cache is not None:
            lines.append(f"timings    {self.timing_cache}")
        if self.workspace is not None:
            lines.append(f"workspace  {self.workspace} MiB")
        lines.append(f"writes     {self.output}")
        return "\n".join(lines)


def shipped_graph(weights: Path) -> Path:
    """The float16 graph that ships beside the weights file of a small network."""
    return weights.with_name(f"{weights.stem}-fp16.onnx")


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Parse "256" (a square) or "256x320" (height first) to (height, width).

    Args:
        text: value of the option.
        option: its flag, for error messages.

    Raises:
        RequestError: `text` is not a size, or the network does not accept this size.
    """
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip())
    if match is None:
        raise RequestError(f"{option} {text}: give HEIGHTxWIDTH, such as 256x320, or one number for a square")
    height, width = int(match[1]), int(match[2] or match[1])
    if any(size % STRIDE or not SMALLEST <= size <= LARGEST for size in (height, width)):
        raise RequestError(f"{option} {text}: height and width must be multiples of {STRIDE}, {SMALLEST} to {LARGEST}")
    return height, width


def make_profile(size: str | None, least: str | None, best: str | None, most: str | None, batch: int) -> Profile:
    """The profile of one size, by default 256x256, or of a range of sizes.

    Args:
        size, least, best, most: values of --size, --min, --opt and --max.
        batch: largest number of pairs.

    Raises:
        RequestError: the options are invalid or contradict each other.
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
