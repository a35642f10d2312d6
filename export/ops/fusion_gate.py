"""The fusion gate.

It computes w x + (1 - w) y + s with s = x + y and w = s sigmoid(own * s + other * spatial + gain channel + bias). The
7x7 and 3x3 convolutions pad by reflection; gain, (1, C, 1, 1), is the sum of each kernel of `other_weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from export.ops.record import Function, Record
from export.ops.shared import ALL_TACTICS, ceil_div, ints, node, op, own, parts, tiles
from export.tensorrt.plugin_kernels import Extent, Plugin, Sizes, times
from kernels import fusion_gate
from kernels.cases.fusion_gate import gate
from kernels.launch import Plan


def _translate(
    x: Any, y: Any, reduce_weight: Any, reduce_bias: Any, expand_weight: Any, expand_bias: Any,
    spatial_weight: Any, spatial_bias: Any, pixel_weight: Any, pixel_bias: Any,
) -> Any:  # fmt: skip
    channels = int(x.shape[1])
    # pixel_weight is (2, 9, C): the taps of every channel, for x + y and for the attention.
    kernels = op.Reshape(op.Transpose(pixel_weight, perm=[0, 2, 1]), ints(2, channels, 1, 9))
    own_kernel, other_kernel = (op.Squeeze(op.Slice(kernels, ints(n), ints(n + 1)), ints(0)) for n in (0, 1))
    taps = ints(channels, 1, 3, 3)
    return own.dmfnet_fusion_gate(
        x,
        y,
        op.Unsqueeze(reduce_weight, ints(2, 3)),
        reduce_bias,
        op.Unsqueeze(expand_weight, ints(2, 3)),
        expand_bias,
        spatial_weight,
        spatial_bias,
        op.Reshape(own_kernel, taps),
        op.Reshape(other_kernel, taps),
        op.Reshape(op.ReduceSum(other_kernel, ints(2), keepdims=0), ints(1, channels, 1, 1)),
        pixel_bias,
        channels=channels,
    )


# The mean over pixels is computed in float32: their sum would overflow in float16.
_BODY = """
    s = Add (x, y)
    pixels = Constant <value_ints = [2, 3]> ()
    s_32 = Cast <to = 1> (s)
    pooled_32 = ReduceMean <keepdims = 1> (s_32, pixels)
    pooled = CastLike (pooled_32, s)
    reduced = Conv (pooled, reduce_weight, reduce_bias)
    hidden = Relu (reduced)
    by_channel = Conv (hidden, expand_weight, expand_bias)
    channel_axis = Constant <value_ints = [1]> ()
    mean = ReduceMean <keepdims = 1> (s, channel_axis)
    largest = ReduceMax <keepdims = 1> (s, channel_axis)
    seen = Concat <axis = 1> (mean, largest)
    three = Constant <value_ints = [0, 0, 3, 3, 0, 0, 3, 3]> ()
    seen_around = Pad <mode = "reflect"> (seen, three)
    by_pixel = Conv (seen_around, spatial_weight, spatial_bias)
    one = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> ()
    s_around = Pad <mode = "reflect"> (s, one)
    own = Conv <group: int = @channels> (s_around, own_weight, pixel_bias)
    by_pixel_around = Pad <mode = "reflect"> (by_pixel, one)
    other = Conv (by_pixel_around, other_weight)
    by_gain = Mul (gain, by_channel)
    local = Add (own, other)
    total = Add (local, by_gain)
    g = Sigmoid (total)
    w = Mul (s, g)
    difference = Sub (x, y)
    moved = Mul (w, difference)
    base = Add (s, y)
    out = Add (base, moved)
"""
# The kernel takes the weights of the pixel attention as (2, 9, C): the taps of every channel, for s and the attention.
_BY_PLUGINS = (
    """
    taps = Constant <value_ints = [1, -1, 9]> ()
    own_taps = Reshape (own_weight, taps)
    other_taps = Reshape (other_weight, taps)
    both_taps = Concat <axis = 0> (own_taps, other_taps)
    pixel_weight = Transpose <perm = [0, 2, 1]> (both_taps)
"""
    + node("pool", "x, y", "seen, sums")
    + node("channel", "x, sums, reduce_weight, reduce_bias, expand_weight, expand_bias", "by_channel")
    + node("spatial", "x, seen, spatial_weight, spatial_bias", "by_pixel")
    + node("gate", "x, y, by_channel, by_pixel, pixel_weight, pixel_bias", "out")
)


def _plan(x: Tensor, y: Tensor | None = None, **given: Tensor) -> Plan:
    """Plan all launches of the gate; parameters that are not given belong to launches other than the plugin's own."""
    other = x.new_empty(1)
    parameters = (f"{of}_{kind}" for of in ("reduce", "expand", "spatial", "pixel") for kind in ("weight", "bias"))
    return fusion_gate.plan_in_four(x, x if y is None else y, *(given.get(name, other) for name in parameters))


def _squares(sizes: Sizes, constants: Mapping[str, Any]) -> Extent:
    return times(ceil_div(sizes.height, constants["SIDE"]), ceil_div(sizes.width, constants["SIDE"]))


RECORD = Record(
    translations={"fusion_gate": _translate},
    functions=(
        Function(
            name="dmfnet_fusion_gate",
            inputs=(
                *("x", "y", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias", "spatial_weight"),
                *("spatial_bias", "own_weight", "other_weight", "gain", "pixel_bias"),
            ),
            attributes={"channels": "int"},
            output="out",
            body=_BODY,
            plugins=_BY_PLUGINS,
            case=gate,
        ),
    ),
    plugins=(
        Plugin(
            "dmfnet_pool_kernel",
            fusion_gate.pool_kernel,
            ("x", "y"),
            {"seen": lambda s: (s.n, 2, s.pixels), "sums": lambda s: (s.n, s.most_parts, s.channels)},
            _plan,
            programs=parts,
            tile="PIXELS",
            tactics=ALL_TACTICS,
        ),
        Plugin(
            "dmfnet_channel_kernel",
            fusion_gate.channel_kernel,
            ("x", "sums", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias"),
            {"by_channel": lambda s: (s.n, s.channels)},
            _plan,
        ),
        Plugin(
            "dmfnet_spatial_kernel",
            fusion_gate.spatial_kernel,
            ("x", "seen", "spatial_weight", "spatial_bias"),
            {"by_pixel": lambda s: (s.n, s.pixels)},
            _plan,
            programs=tiles,
            tile="PIXELS",
            tactics=ALL_TACTICS,
        ),
        Plugin(
            "dmfnet_gate_kernel",
            fusion_gate.gate_kernel,
            ("x", "y", "by_channel", "by_pixel", "pixel_weight", "pixel_bias"),
            {"out": lambda s: (s.n, s.channels, s.height, s.width)},
            _plan,
            programs=_squares,
            tile="SIDE",
            tile_axes=2,
            tactics=ALL_TACTICS,
        ),
    ),
)
