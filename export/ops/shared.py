"""What the files of the operations share: writing ONNX nodes, and sizes of plugins' grids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmfnet_fast.errors import require
from export.tensorrt.plugin_kernels import TACTICS, Extent, Sizes

require("onnx", extra="export")
require("onnxscript", extra="export")

from onnxscript import opset20  # noqa: E402
from onnxscript.values import Opset  # noqa: E402

DOMAIN = "dmfnet"
op: Any = opset20  # its annotations forbid what it accepts
own: Any = Opset(DOMAIN, 1)  # the custom nodes, once `export.onnx.functions.register_schemas` was called

# With aot, TensorRT takes the plugin compiled ahead of time or none.
_MARKS = f'plugin_namespace = "{DOMAIN}", plugin_version = "1", aot = 1'
ALL_TACTICS = tuple(TACTICS)  # of a plugin whose tile may grow and shrink


def ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def node(plugin: str, inputs: str, outputs: str, attributes: str = "") -> str:
    """The statement of the plugin dmfnet_`plugin`_kernel in ONNX's textual syntax."""
    marks = f"{_MARKS}, {attributes}" if attributes else _MARKS
    return f"{outputs} = {DOMAIN}.dmfnet_{plugin}_kernel <{marks}> ({inputs})\n"


def ceil_div(dividend: Extent, divisor: int) -> Extent:
    return (dividend + (divisor - 1)) // divisor


def tiles(sizes: Sizes, constants: Mapping[str, Any]) -> Extent:
    """Programs that have a tile of pixels each."""
    return ceil_div(sizes.pixels, constants["PIXELS"])


def parts(sizes: Sizes, _: Mapping[str, Any]) -> Extent:
    """Programs that have a part of the statistics each."""
    return sizes.parts
