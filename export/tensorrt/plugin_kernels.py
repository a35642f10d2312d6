"""The plugins: each is one launch of a kernel of `kernels`, for shapes that may be known only when an engine runs.

Nothing here needs TensorRT. A dimension is an integer, or an expression of TensorRT's, which knows + - * // and < with
an expression on the left. All else about a launch is what `kernels` plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kernels import attention, fusion_gate, group_norm_silu, upsample_add
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


def _times(a: Extent, b: Extent) -> Extent:
    return b * a if isinstance(a, int) else a * b


def _ceil_div(dividend: Extent, divisor: int) -> Extent:
    return (dividend + (divisor - 1)) // divisor


def pixels_of_part(pixels: Extent) -> Extent:
    """`kernels.convolution_epilogue.pixels_of_part`, of an expression too: from the largest, what is too much."""
    if isinstance(pixels, int):
        return epilogue.pixels_of_part(pixels)
    needed = _ceil_div(pixels, epilogue.MOST_PARTS)
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
        return _times(self.height, self.width)

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
        tactics: those of `TACTICS` that there are.
    """

    name: str
    kernel: Any
    inputs: tuple[str, ...]
    outputs: dict[str, Callable[[Sizes], tuple[Extent, ...]]]
    plan: Callable[..., Plan]
    attributes: dict[str, type] = field(default_factory=dict)
    programs: Callable[[Sizes, Mapping[str, Any]], Extent] | None = None
    tile: str | None = None
    tactics: tuple[int, ...] = (1,)

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
        return PluginLaunch(_signature(planned, unknown), grid, integers)

    def _scaled(self, planned: Launch, tactic: int) -> Launch:
        if self.tile is None:
            return planned
        factor, divisor = TACTICS[tactic]
        size = max(1, planned.constants[self.tile] * factor // divisor)
        if self.tile == "SIDE":  # of a square
            factor, divisor = factor**2, divisor**2
        warps = max(1, planned.warps * factor // divisor)
        return replace(planned, constants={**planned.constants, self.tile: size}, warps=warps)


def _meta(name: str, shape: Sequence[Extent], dtype: torch.dtype) -> Tensor:
    known = [size if isinstance(size, int) else other for size, other in zip(shape, _STAND_IN, strict=False)]
    layout = torch.channels_last if name in FEATURE_MAPS else torch.contiguous_format
    return torch.empty(known, dtype=dtype, device="meta", memory_format=layout)


def _signature(planned: Launch, unknown: set[str]) -> Signature:
    """What `kernels` would compile, but floats are constants and the integers `unknown` may have any value."""
    signature = signature_of(planned)
    types, constants = dict(signature.types), dict(signature.constants)
    for name, value in planned.arguments.items():
        if isinstance(value, float):
            types[name], constants[name] = "constexpr", value
    for name in unknown:
        types[name] = "i32"
        constants.pop(name, None)
    if "parts" in unknown and planned.kernel is group_norm_silu.moments_kernel:
        constants["PARTS"] = epilogue.MOST_PARTS
    return replace(
        signature,
        types=tuple(types.items()),
        constants=tuple(sorted(constants.items())),
        aligned=tuple(name for name in signature.aligned if name not in unknown),
    )


def _plan_statistics(h: Tensor) -> Plan:
    return epilogue.plan(h, None, None, False, write=False, statistics=True)


def _plan_moments(
    x: Tensor,
    weight: Tensor,
    groups: int,
    eps: float,
    skip: Tensor | None = None,
    noise_bias: Tensor | None = None,
    **_: Tensor,
) -> Plan:
    return group_norm_silu.plan(x, None, skip, None, noise_bias, weight, weight, groups, eps, True, fold=False)


def _plan_normalize(x: Tensor, bias: Tensor, silu: int, skip: Tensor | None = None, **_: Tensor) -> Plan:
    return group_norm_silu.plan(x, None, skip, None, None, bias, bias, 1, 0.0, bool(silu), fold=False)


def _plan_gate(x: Tensor, y: Tensor | None = None, **given: Tensor) -> Plan:
    """Parameters that are not given belong to other launches."""
    other = x.new_empty(1)
    parameters = (f"{of}_{kind}" for of in ("reduce", "expand", "spatial", "pixel") for kind in ("weight", "bias"))
    return fusion_gate.plan(x, x if y is None else y, *(given.get(name, other) for name in parameters))


def _plan_upsample(x: Tensor, addend: Tensor | None = None) -> Plan:
    return upsample_add.plan(x, addend, relu=addend is None)


def _tiles(sizes: Sizes, constants: Mapping[str, Any]) -> Extent:
    return _ceil_div(sizes.pixels, constants["PIXELS"])


def _parts(sizes: Sizes, _: Mapping[str, Any]) -> Extent:
    return sizes.parts


def _squares(sizes: Sizes, constants: Mapping[str, Any]) -> Extent:
    return _times(_ceil_div(sizes.height, constants["SIDE"]), _ceil_div(sizes.width, constants["SIDE"]))


def _moments(name: str, *inputs: str) -> Plugin:
    return Plugin(
        name,
        group_norm_silu.moments_kernel,
        inputs,
        {"moments": lambda s: (s.n, 2, s.all_channels)},
        _plan_moments,
        {"groups": int, "eps": float},
    )


def _normalize(name: str, *inputs: str) -> Plugin:
    return Plugin(
        name,
        group_norm_silu.normalize_kernel,
        inputs,
        {"out": lambda s: (s.n, s.all_channels, s.height, s.width)},
        _plan_normalize,
        {"silu": int},
        _tiles,
        "PIXELS",
        (1, 2, 3),
    )


def _upsample(name: str, *inputs: str) -> Plugin:
    return Plugin(
        name,
        upsample_add.upsample_kernel,
        inputs,
        {"out": lambda s: (s.n, s.channels, s.height * 2, s.width * 2)},
        _plan_upsample,
        programs=lambda s, constants: _ceil_div(s.pixels * 4, constants["PIXELS"]),
        tile="PIXELS",
        tactics=(1, 2, 3),
    )


PLUGINS: tuple[Plugin, ...] = (
    Plugin(
        "dmfnet_statistics_kernel",
        epilogue.epilogue_kernel,
        ("h",),
        {"statistics": lambda s: (s.n, s.parts, 2, s.channels)},
        _plan_statistics,
        programs=_parts,
        tile="PIXELS",
        tactics=(1, 2, 3),
    ),
    _moments("dmfnet_moments_kernel", "x", "x_statistics", "weight"),
    _moments("dmfnet_moments_joined_kernel", "x", "skip", "x_statistics", "skip_statistics", "weight"),
    _moments("dmfnet_moments_biased_kernel", "x", "x_statistics", "noise_bias", "weight"),
    _normalize("dmfnet_normalize_kernel", "x", "moments", "bias"),
    _normalize("dmfnet_normalize_joined_kernel", "x", "skip", "moments", "bias"),
    Plugin(
        "dmfnet_pool_kernel",
        fusion_gate.pool_kernel,
        ("x", "y"),
        {"seen": lambda s: (s.n, 2, s.pixels), "sums": lambda s: (s.n, s.parts, s.channels)},
        _plan_gate,
        programs=_parts,
        tile="PIXELS",
        tactics=(1, 2, 3),
    ),
    Plugin(
        "dmfnet_channel_kernel",
        fusion_gate.channel_kernel,
        ("x", "sums", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias"),
        {"by_channel": lambda s: (s.n, s.channels)},
        _plan_gate,
    ),
    Plugin(
        "dmfnet_spatial_kernel",
        fusion_gate.spatial_kernel,
        ("x", "seen", "spatial_weight", "spatial_bias"),
        {"by_pixel": lambda s: (s.n, s.pixels)},
        _plan_gate,
        programs=_tiles,
        tile="PIXELS",
        tactics=(1, 2, 3),
    ),
    Plugin(
        "dmfnet_gate_kernel",
        fusion_gate.gate_kernel,
        ("x", "y", "by_channel", "by_pixel", "pixel_weight", "pixel_bias"),
        {"out": lambda s: (s.n, s.channels, s.height, s.width)},
        _plan_gate,
        programs=_squares,
        tile="SIDE",
        tactics=(1, 2, 3),
    ),
    _upsample("dmfnet_upsample_add_kernel", "x", "addend"),
    _upsample("dmfnet_upsample_relu_kernel", "x"),
    Plugin(
        "dmfnet_attention_kernel",
        attention.attention_kernel,
        ("qkv",),
        {"out": lambda s: (s.n, s.channels // 3, s.height, s.width)},
        lambda qkv: attention.plan(qkv),
        # One tactic: twice the queries take too much shared memory, half of them are too few for matrix units.
        programs=lambda s, constants: _ceil_div(s.tokens, constants["QUERIES"]),
    ),
)
