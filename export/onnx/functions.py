"""The fused operations as ONNX functions: custom nodes with a body in standard ONNX operators.

They exist between the export of a network and `inline`, which puts the bodies, or our plugins (see
`export.tensorrt.plugin_graph`), in place of the nodes. No file and no parser gets to see them: in functions, TensorRT
10.3 silently takes tensors of the whole graph that have the same name. `export.ops` lists the functions.
"""

from __future__ import annotations

from typing import Any

from dmfnet_fast.errors import require
from export.onnx.graph import OPSET, add_metadata, tidy
from export.ops import FUNCTIONS
from export.ops.shared import DOMAIN

onnx = require("onnx", extra="export")
inliner = require("onnx.inliner", extra="export")

import onnx_ir


def functions() -> dict[str, Any]:
    """An `onnx.FunctionProto` for each fused operation, by name."""
    result = {}
    for name, function in FUNCTIONS.items():
        declared = f"<{', '.join(function.attributes)}>" if function.attributes else ""
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]> {name} {declared}'
        signature = f"({', '.join(function.inputs)}) => ({function.output})"
        result[name] = onnx.parser.parse_function(f"{header} {signature} {{ {function.body} }}")
    return result


def inline(model: Any) -> Any:
    """Replace all calls of functions by their bodies, and fold what is constant.

    Args:
        model: an `onnx.ModelProto`; it is not modified.

    Returns:
        An `onnx.ModelProto` without functions and with the same inputs, outputs and metadata. Every tensor has a name
        of its own.
    """
    flat = tidy(onnx_ir.from_proto(inliner.inline_local_functions(model)))
    used = {node.domain for node in flat.graph.node}
    kept = [entry for entry in flat.opset_import if entry.domain in used]
    del flat.opset_import[:]
    flat.opset_import.extend(kept)
    if DOMAIN in used and not any(entry.domain == DOMAIN for entry in kept):
        flat.opset_import.add(domain=DOMAIN, version=1)
    flat.producer_name, flat.producer_version = model.producer_name, model.producer_version
    del flat.metadata_props[:]
    add_metadata(flat, {entry.key: entry.value for entry in model.metadata_props})
    assert not flat.functions
    onnx.checker.check_model(flat)
    return flat


def register_schemas() -> None:
    """Register the schemas of the custom nodes with onnx, where the exporter looks them up. Safe to repeat."""
    types = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)"]
    kinds = {"int": onnx.defs.OpSchema.AttrType.INT, "float": onnx.defs.OpSchema.AttrType.FLOAT}
    for name, function in FUNCTIONS.items():
        if onnx.defs.has(name, DOMAIN):
            continue
        # Only the noise bias is always float32.
        parameter = onnx.defs.OpSchema.FormalParameter
        given = [parameter(label, "tensor(float)" if label == "noise_bias" else "T") for label in function.inputs]
        attributes = [onnx.defs.OpSchema.Attribute(label, kinds[kind]) for label, kind in function.attributes.items()]
        schema = onnx.defs.OpSchema(
            name,
            DOMAIN,
            1,
            inputs=given,
            outputs=[parameter(function.output, "T")],
            type_constraints=[("T", types, "of the feature maps")],
            attributes=attributes,
        )
        onnx.defs.register_schema(schema)
