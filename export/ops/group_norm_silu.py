"""GroupNorm with optional SiLU, for one feature map, a concatenation of two, or one with a noise bias."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from export.ops.record import Function, Record
from export.ops.shared import ALL_TACTICS, node, own, tiles
from export.tensorrt.plugin_kernels import Plugin
from kernels import group_norm_silu
from kernels.cases.group_norm_silu import norm
from kernels.cases.record import Case
from kernels.convolution_epilogue import MOST_PARTS
from kernels.launch import Plan


def _translate(
    x: Any, _xs: Any, skip: Any, _ss: Any, noise_bias: Any, weight: Any, bias: Any,
    groups: int, eps: float, silu: bool,
) -> Any:  # fmt: skip
    settings = {"groups": groups, "eps": eps}
    if not silu:
        assert skip is None
        assert noise_bias is None
        return own.dmfnet_group_norm(x, weight, bias, **settings)
    if skip is not None:
        assert noise_bias is None
        return own.dmfnet_group_norm_silu_joined(x, skip, weight, bias, **settings)
    if noise_bias is not None:
        return own.dmfnet_group_norm_silu_biased(x, noise_bias, weight, bias, **settings)
    return own.dmfnet_group_norm_silu(x, weight, bias, **settings)


def _norm(silu: bool = True) -> str:
    """Statements for the GroupNorm of the float32 tensor v, with optional SiLU, as y in the type of x.

    It is written as InstanceNormalization over groups: ONNX's GroupNormalization needs TensorRT 10.9, and both become
    the same kernels.
    """
    normalized = """
    count = Constant <value_int: int = @groups> ()
    one = Constant <value_ints = [1]> ()
    groups_1d = Reshape (count, one)
    keep = Constant <value_ints = [0]> ()
    rest = Constant <value_ints = [-1]> ()
    grouped_shape = Concat <axis = 0> (keep, groups_1d, rest)
    grouped = Reshape (v, grouped_shape)
    ones = ConstantOfShape <value = float[1] {1.0}> (groups_1d)
    zeros = ConstantOfShape <value = float[1] {0.0}> (groups_1d)
    normal = InstanceNormalization <epsilon: float = @eps> (grouped, ones, zeros)
    shape = Shape (v)
    restored = Reshape (normal, shape)
    per_channel = Constant <value_ints = [-1, 1, 1]> ()
    weight_32 = Cast <to = 1> (weight)
    scale = Reshape (weight_32, per_channel)
    bias_32 = Cast <to = 1> (bias)
    shift = Reshape (bias_32, per_channel)
    scaled = Mul (restored, scale)
    shifted = Add (scaled, shift)
"""
    activated = "gate = Sigmoid (shifted) wide = Mul (shifted, gate)" if silu else "wide = Identity (shifted)"
    return f"{normalized} {activated} y = CastLike (wide, x)"


# v = x + noise_bias, in float32.
_BIASED = """
    images = Shape <start = 0, end = 1> (x)
    rows = Shape <start = 0, end = 1> (noise_bias)
    images_per_row = Div (images, rows)
    channels = Shape <start = 1, end = 2> (noise_bias)
    middle = Constant <value_ints = [1]> ()
    row_shape = Concat <axis = 0> (rows, middle, channels)
    table = Reshape (noise_bias, row_shape)
    repeated_shape = Concat <axis = 0> (rows, images_per_row, channels)
    repeated = Expand (table, repeated_shape)
    any = Constant <value_ints = [-1]> ()
    pixel = Constant <value_ints = [1, 1]> ()
    added_shape = Concat <axis = 0> (any, channels, pixel)
    added = Reshape (repeated, added_shape)
    wide_x = Cast <to = 1> (x)
    v = Add (wide_x, added)
"""


def _by_plugins(silu: int = 1, joined: bool = False, biased: bool = False) -> str:
    both = "x, skip" if joined else "x"
    kind = "_joined" if joined else "_biased" if biased else ""
    tables = "statistics, skip_statistics" if joined else "statistics, noise_bias" if biased else "statistics"
    return (
        node("statistics", "x", "statistics")
        + (node("statistics", "skip", "skip_statistics") if joined else "")
        + node(f"moments{kind}", f"{both}, {tables}, weight", "moments", "groups: int = @groups, eps: float = @eps")
        + node(f"normalize{'_joined' if joined else ''}", f"{both}, moments, bias", "y", f"silu = {silu}")
    )


def _case(skip: bool = False, rows: int = 0, silu: bool = True) -> Any:
    """A case with four groups, one of which spans both inputs if there is a skip connection."""

    def case(n: int, channels: int, height: int, width: int) -> Case:
        return norm(n, channels, channels // 2 if skip else 0, height, width, 4, rows=rows, silu=silu)

    return case


_ATTRIBUTES = {"groups": "int", "eps": "float"}


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


def _moments(name: str, *inputs: str) -> Plugin:
    return Plugin(
        name,
        group_norm_silu.moments_kernel,
        inputs,
        {"moments": lambda s: (s.n, 2, s.all_channels)},
        _plan_moments,
        {"groups": int, "eps": float},
        bounds={"parts": ("PARTS", MOST_PARTS)},
    )


def _normalize(name: str, *inputs: str) -> Plugin:
    return Plugin(
        name,
        group_norm_silu.normalize_kernel,
        inputs,
        {"out": lambda s: (s.n, s.all_channels, s.height, s.width)},
        _plan_normalize,
        {"silu": int},
        tiles,
        "PIXELS",
        tactics=ALL_TACTICS,
    )


RECORD = Record(
    translations={"group_norm_silu": _translate},
    functions=(
        Function(
            name="dmfnet_group_norm",
            inputs=("x", "weight", "bias"),
            attributes=_ATTRIBUTES,
            output="y",
            body="v = Cast <to = 1> (x)" + _norm(silu=False),
            plugins=_by_plugins(silu=0),
            case=_case(silu=False),
        ),
        Function(
            name="dmfnet_group_norm_silu",
            inputs=("x", "weight", "bias"),
            attributes=_ATTRIBUTES,
            output="y",
            body="v = Cast <to = 1> (x)" + _norm(),
            plugins=_by_plugins(),
            case=_case(),
        ),
        # Normalizes the concatenation of x and skip along the channels.
        Function(
            name="dmfnet_group_norm_silu_joined",
            inputs=("x", "skip", "weight", "bias"),
            attributes=_ATTRIBUTES,
            output="y",
            body="joined = Concat <axis = 1> (x, skip) v = Cast <to = 1> (joined)" + _norm(),
            plugins=_by_plugins(joined=True),
            case=_case(skip=True),
        ),
        # Normalizes x + noise_bias; noise_bias is (3, C) float32, and row r is added to the r-th third of the batch.
        Function(
            name="dmfnet_group_norm_silu_biased",
            inputs=("x", "noise_bias", "weight", "bias"),
            attributes=_ATTRIBUTES,
            output="y",
            body=_BIASED + _norm(),
            plugins=_by_plugins(biased=True),
            case=_case(rows=3),
        ),
    ),
    plugins=(
        _moments("dmfnet_moments_kernel", "x", "x_statistics", "weight"),
        _moments("dmfnet_moments_joined_kernel", "x", "skip", "x_statistics", "skip_statistics", "weight"),
        _moments("dmfnet_moments_biased_kernel", "x", "x_statistics", "noise_bias", "weight"),
        _normalize("dmfnet_normalize_kernel", "x", "moments", "bias"),
        _normalize("dmfnet_normalize_joined_kernel", "x", "skip", "moments", "bias"),
    ),
)
