"""What a plugin is: one launch of a kernel of `kernels`, for shapes that may be known only when an engine runs.

Which there are, `export.ops` says. Nothing here needs TensorRT. A dimension is an integer, or an expression of
TensorRT's, which knows + - * // and < with an expression on the left. All else about a launch is what `kernels` plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kernels import convolution_epilogue as epilogue
from kernels.compile import Signature, signature_of
from kernels.launch import Launch, Plan

Extent: TypeAlias = Any  # an int, or an expression of TensorRT's

# Tensors (N, C, H, W) in channels-last memory; all others are tables and parameters, row by row.
FEATURE_MAPS = frozenset({"h", "x", "y", "skip", "addend", "qkv", "out"})
# What the pixels of a tile and the warps are multiplied and divided by, which leaves every thread its work. The first
# is that of kernels.tiles.
TACTICS: dict[int, tuple[int, int]] = {1: (1, 1), 2: (2, 1), 3: (1, 2)}
# For dimensions that are not known: nothing that is taken from the plan depends on them.
_STAND_IN = (6, 64, 64, 64)
_DOUBLINGS = 19  # of the fewest pixels of a part; beyond 2^31 pixels no integer of a kernel would hold them


def times(a: Extent, b: Extent) -> Extent:
    return b * a if isinstance(a, int) else a * b


def pixels_of_part(pixels: Extent) -> Extent:
    """`kernels.convolution_epilogue.pixels_of_part`, of an expression too: from the largest, what is too much."""
    if isinstance(pixels, int):
        return epilogue.pixels_of_part(pixels)
    needed = (pixels + (epilogue.MOST_PARTS - 1)) // epilogue.MOST_PARTS
    result = pixels * 0 + (epilogue.FEWEST_PIXELS << _DOUBLINGS)
    for doublings in range(_DOUBLINGS):
        size = epilogue.FEWEST_PIXELS << doublings
        result = result - (needed < size + 1) * size
    return result


@dataclass(frozen=True)
class Sizes:
    """Of a plugin's first input, a feature map, and the numbers that the kernels make of them.

    Attributes:
        n, channels, height, width: its dimensions.
        skip_channels: of the feature map beside it, or 0.
        rows: of the noise bias, or 0.
    """

    n: Extent
    channels: Extent
    height: Extent
    width: Extent
    skip_channels: Extent = 0
    rows: int = 0

    @property
    def pixels(self) -> Extent:
        return times(self.height, self.width)

    @property
    def tokens(self) -> Extent:
        return self.pixels

    @property
    def pixels_per_part(self) -> Extent:
        return pixels_of_part(self.pixels)

    @property
    def parts(self) -> Extent:
        return (self.pixels + self.pixels_per_part - 1) // self.pixels_per_part

    @property
    def images_per_row(self) -> Extent:
        return self.n // self.rows if self.rows else 1

    @property
    def all_channels(self) -> Extent:
        return self.channels + self.skip_channels


_OF_SIZES = ("pixels", "tokens", "height", "width", "pixels_per_part", "parts", "images_per_row")


@dataclass(frozen=True)
class PluginLaunch:
    """A launch, as TensorRT is told of it.

    Attributes:
        signature: what is compiled, without runtime floats.
        grid: programs along each axis.
        integers: values of the kernel's integers, by name; with those that are compiled in.
    """

    signature: Signature
    grid: tuple[Extent, ...]
    integers: dict[str, Extent]


@dataclass(frozen=True)
class Plugin:
    """One launch of a kernel, as an operation of a graph.

    Attributes:
        name: of the operation.
        kernel: the jitted function.
        inputs: names of the tensors: parameters of the kernel. A kernel that does not read the first takes its shape.
        outputs: their shapes by name, parameters of the kernel too.
        plan: of `kernels`; takes the inputs and attributes by name, and launches the kernel.
        attributes: their types by name.
        programs: along the grid's first axis, from the sizes and the kernel's constants; None where that is images.
        tile: the constant that tactics scale.
        tile_axes: axes of the tile that have that constant as their length.
        tactics: those of `TACTICS` that there are.
        bounds: constants that are the most that an integer may be where that is not known: by the integer's name, the
            constant's name and value.
    """

    name: str
    kernel: Any
    inputs: tuple[str, ...]
    outputs: dict[str, Callable[[Sizes], tuple[Extent, ...]]]
    plan: Callable[..., Plan]
    attributes: dict[str, type] = field(default_factory=dict)
    programs: Callable[[Sizes, Mapping[str, Any]], Extent] | None = None
    tile: str | None = None
    tile_axes: int = 1
    tactics: tuple[int, ...] = (1,)
    bounds: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def sizes(self, shapes: Mapping[str, Sequence[Extent]]) -> Sizes:
        """From the shapes of the inputs, by name."""
        skip_channels = shapes["skip"][1] if "skip" in shapes else 0
        rows = shapes["noise_bias"][0] if "noise_bias" in shapes else 0
        n, channels, height, width = shapes[self.inputs[0]]
        return Sizes(n, channels, height, width, skip_channels, rows)

    def launch(
        self,
        shapes: Mapping[str, Sequence[Extent]],
        dtypes: Mapping[str, torch.dtype],
        attributes: Mapping[str, Any],
        tactic: int = 1,
    ) -> PluginLaunch:
        """The launch for inputs of these shapes and types; `kernels.launch.assumed` says on what architecture."""
        given = {name: _meta(name, shapes[name], dtypes[name]) for name in self.inputs}
        (planned,) = (call for call in self.plan(**given, **attributes)[1] if call.kernel is self.kernel)
        planned = self._scaled(planned, tactic)
        sizes = self.sizes(shapes)
        integers = {name: value for name, value in planned.arguments.items() if isinstance(value, int)}
        integers.update((name, getattr(sizes, name)) for name in _OF_SIZES if name in integers)
        unknown = {name for name, value in integers.items() if not isinstance(value, int)}
        if self.programs is None:
            grid = (sizes.n, *planned.grid[1:])
        else:
            grid = (self.programs(sizes, planned.constants), sizes.n, *planned.grid[2:])
        bounds = dict(self.bounds[name] for name in unknown & set(self.bounds))
        return PluginLaunch(_signature(planned, unknown, bounds), grid, integers)

    def _scaled(self, planned: Launch, tactic: int) -> Launch:
        if self.tile is None:
            return planned
        factor, divisor = TACTICS[tactic]
        size = max(1, planned.constants[self.tile] * factor // divisor)
        warps = max(1, planned.warps * factor**self.tile_axes // divisor**self.tile_axes)
        return replace(planned, constants={**planned.constants, self.tile: size}, warps=warps)


def _meta(name: str, shape: Sequence[Extent], dtype: torch.dtype) -> Tensor:
    known = [size if isinstance(size, int) else other for size, other in zip(shape, _STAND_IN, strict=False)]
    layout = torch.channels_last if name in FEATURE_MAPS else torch.contiguous_format
    return torch.empty(known, dtype=dtype, device="meta", memory_format=layout)


def _signature(planned: Launch, unknown: set[str], bounds: Mapping[str, int]) -> Signature:
    """What `kernels` would compile, but floats are constants and the integers `unknown` may have any value.

    `bounds`: values of constants that hold for all of those.
    """
    signature = signature_of(planned)
    types, constants = dict(signature.types), dict(signature.constants)
    for name, value in planned.arguments.items():
        if isinstance(value, float):
            types[name], constants[name] = "constexpr", value
    for name in unknown:
        types[name] = "i32"
        constants.pop(name, None)
    constants.update(bounds)
    return replace(
        signature,
        types=tuple(types.items()),
        constants=tuple(sorted(constants.items())),
        aligned=tuple(name for name in signature.aligned if name not in unknown),
    )
