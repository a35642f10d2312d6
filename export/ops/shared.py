"""Helpers for the modules of the operations: writing ONNX nodes, and grid sizes of plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmfnet_fast.errors import require
from export.tensorrt.plugin_kernels import TACTICS, Extent, Sizes

require("onnx", extra="export")
require("onnxscript", extra="export")

from onnxscript import opset20
from onnxscript.values import Opset

DOMAIN = "dmfnet"
op: Any = opset20  # typed Any because the annotations are stricter than the implementation
own: Any = Opset(DOMAIN, 1)  # custom nodes; requires a prior call of `export.onnx.functions.register_schemas`

# aot = 1: TensorRT uses the implementation that was compiled ahead of time, or fails.
_MARKS = f'plugin_namespace = "{DOMAIN}", plugin_version = "1", aot = 1'
ALL_TACTICS = tuple(TACTICS)  # for plugins whose tile can be scaled up and down


def ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def node(plugin: str, inputs: str, outputs: str, attributes: str = "") -> str:
    """A call of the plugin dmfnet_`plugin`_kernel in ONNX's textual syntax."""
    marks = f"{_MARKS}, {attributes}" if attributes else _MARKS
    return f"{outputs} = {DOMAIN}.dmfnet_{plugin}_kernel <{marks}> ({inputs})\n"


def ceil_div(dividend: Extent, divisor: int) -> Extent:
    return (dividend + (divisor - 1)) // divisor


def tiles(sizes: Sizes, constants: Mapping[str, Any]) -> Extent:
    """Number of programs if each computes one tile of pixels."""
    return ceil_div(sizes.pixels, constants["PIXELS"])


def parts(sizes: Sizes, _: Mapping[str, Any]) -> Extent:
    """Number of programs if each computes one part of the statistics."""
    return sizes.parts
