"""Replaces the fused operations in an engine's graph by our plugins."""

from __future__ import annotations

from typing import Any

from dmfnet_fast.errors import EngineError, require
from export.onnx.functions import OPSET
from export.onnx.graph import add_metadata, tidy
from export.ops import FUNCTIONS
from export.ops.shared import DOMAIN

onnx = require("onnx", extra="export")
inliner = require("onnx.inliner", extra="export")

import onnx_ir


def _replaced(function: Any) -> Any:
    """A function with the same signature whose body consists of plugin nodes."""
    if function.name not in FUNCTIONS:
        raise EngineError(f"the graph has a function {function.name} that there are no plugins for: export it anew")
    attributes = f"<{', '.join(function.attribute)}>" if function.attribute else ""
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]> {function.name} {attributes}'
    signature = f"({', '.join(function.input)}) => ({', '.join(function.output)})"
    return onnx.parser.parse_function(f"{header} {signature} {{ {FUNCTIONS[function.name].plugins} }}")


def with_plugins(model: Any) -> Any:
    """The graph of an engine (see `engine_graph`) with plugin nodes for its fused operations, and no functions.

    Args:
        model: an `onnx.ModelProto`; it is not modified.

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
    flat = tidy(onnx_ir.from_proto(inliner.inline_local_functions(changed)))
    if not any(entry.domain == DOMAIN for entry in flat.opset_import):
        flat.opset_import.add(domain=DOMAIN, version=1)
    del flat.metadata_props[:]
    add_metadata(flat, {entry.key: entry.value for entry in model.metadata_props})
    onnx.checker.check_model(flat)
    return flat
