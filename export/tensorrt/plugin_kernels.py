"""Plugins: single launches of kernels, for shapes that may be known only when an engine runs.

`export.ops` lists the plugins. Nothing here needs TensorRT. A dimension is an integer or a symbolic expression of
TensorRT's, which supports + - * // and < with the expression as the left operand. `kernels` plans everything else about
a launch.
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

Extent: TypeAlias = Any  # an int or a symbolic expression of TensorRT's

# Names of the tensors that are (N, C, H, W) in channels-last memory; all others are row-major tables and parameters.
FEATURE_MAPS = frozenset({"h", "x", "y", "skip", "addend", "qkv", "out"})
# For each tactic, the factor and the divisor that scale both the pixels of a tile and the number of warps, so that the
# work of a thread stays the same. Tactic 1 is the tile of kernels.tiles.
TACTICS: dict[int, tuple[int, int]] = {1: (1, 1), 2: (2, 1), 3: (1, 2)}
# Values for unknown dimensions; no part of the plan that is used here depends on them.
_STAND_IN = (6, 64, 64, 64)
_DOUBLINGS = 19  # of FEWEST_PIXELS; more than 2^31 pixels would not fit in the kernels' integers


def times(a: Extent, b: Extent) -> Extent:
    return b * a if isinstance(a, int) else a * b


def pixels_of_part(pixels: Extent) -> Extent:
    """Like `kernels.convolution_epilogue.pixels_of_part`, but also for a symbolic expression.

    The result is FEWEST_PIXELS times a power of two. For an expression, it starts from the largest such size, and each
    smaller size that suffices is subtracted, which leaves the smallest that suffices.
    """
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
    """The dimensions of a plugin's inputs, and the numbers that kernels derive from them.

    Attributes:
        n, channels, height, width: dimensions of the first input, a feature map.
        skip_channels: channels of the feature map that is concatenated with it, or 0.
        rows: rows of the noise bias, or 0.
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
    def most_parts(self) -> Extent:
        """The extent of a tensor that has one entry for each part.

        TensorRT allocates tensors for the largest size of an engine, which may have fewer parts than a smaller one: 512
        at 512x512, 320 at 512x640. So the extent does not depend on a size that is not known. Kernels read and write
        the first `parts` entries of each image, without gaps between the images.
        """
        return self.parts if isinstance(self.pixels, int) else epilogue.MOST_PARTS

    @property
    def images_per_row(self) -> Extent:
        return self.n // self.rows if self.rows else 1

    @property
    def all_channels(self) -> Extent:
        return self.channels + self.skip_channels


_OF_SIZES = ("pixels", "tokens", "height", "width", "pixels_per_part", "parts", "images_per_row")


@dataclass(frozen=True)
class PluginLaunch:
    """A launch in the form that TensorRT needs.

    Attributes:
        signature: signature to compile, without runtime floats.
        grid: number of programs along each axis.
        integers: values of the kernel's integer parameters by name, including those that are compiled in.
    """

    signature: Signature
    grid: tuple[Extent, ...]
    integers: dict[str, Extent]


@dataclass(frozen=True)
class Plugin:
    """One launch of a kernel as an operation of a graph.

    Attributes:
        name: name of the operation, in lower case and unlike ONNX's own, as TensorRT's parser ignores the domain.
        kernel: the jitted function.
        inputs: names of the input tensors, which are parameters of the kernel. A kernel that does not read the first
            input only uses its shape.
        outputs: functions from the sizes to the shape of each output, by name; the names are parameters of the kernel.
        plan: a plan function of `kernels` that takes the inputs and attributes by name; one of its launches is the
            kernel's.
        attributes: types of the attributes by name.
        programs: number of programs along the grid's first axis, given the sizes and the kernel's constants, with the
            images along the second axis; None if the images are the first axis.
        tile: name of the constant that tactics scale; None if there is none.
        tile_axes: number of tile axes whose length is this constant.
        tactics: supported keys of `TACTICS`.
        bounds: for an integer that may be unknown, by its name: the name and value of the constant that is its upper
            bound.
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
        """The sizes for the shapes of the inputs, by name."""
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
        """The launch for these shapes, types and attributes, on the architecture set by `kernels.launch.assumed`."""
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
    """The signature that `kernels` would compile, with floats as constants and without specializing unknown integers.

    Args:
        planned: the planned launch.
        unknown: names of the integers whose values are not known.
        bounds: values of the constants that must hold for every value of these integers.
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
