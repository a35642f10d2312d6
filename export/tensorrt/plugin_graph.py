"""Replaces the fused operations in an engine's graph by our plugins."""

from __future__ import annotations

from typing import Any

from dmfnet_fast.errors import EngineError, require
from export.onnx.functions import inline
from export.onnx.graph import OPSET
from export.ops import FUNCTIONS
from export.ops.shared import DOMAIN

onnx = require("onnx", extra="export")


def _replaced(function: Any) -> Any:
    """A function with the same signature whose body consists of plugin nodes."""
    if function.name not in FUNCTIONS:
        raise EngineError(f"the graph has a function {function.name} that there are no plugins for: export it anew")
    attributes = f"<{', '.join(function.attribute)}>" if function.attribute else ""
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]> {function.name} {attributes}'
    signature = f"({', '.join(function.input)}) => ({', '.join(function.output)})"
    return onnx.parser.parse_function(f"{header} {signature} {{ {FUNCTIONS[function.name].plugins} }}")


def with_plugins(model: Any) -> Any:
    """The graph of an engine with plugin nodes for its fused operations, and no functions.

    Args:
        model: an `onnx.ModelProto` with functions (see `engine_graph`); it is not modified.

    Returns:
        An `onnx.ModelProto` with the same inputs, outputs and metadata. If two normalizations read the same tensor,
        its statistics are computed once.

    Raises:
        EngineError: there are no plugins for one of the fused operations.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.functions[:]
    changed.functions.extend(
        _replaced(function) if function.domain == DOMAIN else function for function in model.functions
    )
    return inline(changed)
