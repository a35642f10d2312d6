"""Bilinear upsampling by two, followed by a ReLU or by the addition of another feature map."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from export.ops.record import Function, Record
from export.ops.shared import ALL_TACTICS, ceil_div, node, own
from export.tensorrt.plugin_kernels import Plugin
from kernels import upsample_add
from kernels.cases.upsample_add import upsample
from kernels.launch import Plan


def _translate(x: Any, addend: Any, relu: bool) -> Any:
    assert relu == (addend is None)
    return own.dmfnet_upsample_relu(x) if relu else own.dmfnet_upsample_add(x, addend)


_LARGE = """
    scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
    large = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , scales)
"""


def _plan(x: Tensor, addend: Tensor | None = None) -> Plan:
    return upsample_add.plan(x, addend, relu=addend is None)


def _plugin(name: str, *inputs: str) -> Plugin:
    return Plugin(
        name,
        upsample_add.upsample_kernel,
        inputs,
        {"out": lambda s: (s.n, s.channels, s.height * 2, s.width * 2)},
        _plan,
        programs=lambda s, constants: ceil_div(s.pixels * 4, constants["PIXELS"]),
        tile="PIXELS",
        tactics=ALL_TACTICS,
    )


RECORD = Record(
    translations={"upsample_add": _translate},
    functions=(
        Function(
            name="dmfnet_upsample_add",
            inputs=("x", "addend"),
            attributes={},
            output="out",
            body=f"{_LARGE} out = Add (large, addend)",
            plugins=node("upsample_add", "x, addend", "out"),
            case=partial(upsample, addend=True, relu=False),
        ),
        Function(
            name="dmfnet_upsample_relu",
            inputs=("x",),
            attributes={},
            output="out",
            body=f"{_LARGE} out = Relu (large)",
            plugins=node("upsample_relu", "x", "out"),
            case=partial(upsample, addend=False, relu=True),
        ),
    ),
    plugins=(_plugin("dmfnet_upsample_add_kernel", "x", "addend"), _plugin("dmfnet_upsample_relu_kernel", "x")),
)
