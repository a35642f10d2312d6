"""The fused operations as ONNX functions: custom nodes with a body in standard ONNX operators.

A parser that does not know the node uses the body. TensorRT with our plugins runs a kernel instead (see
`export.tensorrt.plugins`). `export.ops` lists the functions.
"""

from __future__ import annotations

from typing import Any

from dmfnet_fast.errors import require
from export.ops import FUNCTIONS
from export.ops.shared import DOMAIN

onnx = require("onnx", extra="export")

OPSET = 20  # the newest that TensorRT 10.3 (JetPack 6) reads


def functions() -> dict[str, Any]:
    """An `onnx.FunctionProto` for each fused operation, by name."""
    result = {}
    for name, function in FUNCTIONS.items():
        declared = f"<{', '.join(function.attributes)}>" if function.attributes else ""
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]> {name} {declared}'
        signature = f"({', '.join(function.inputs)}) => ({function.output})"
        result[name] = onnx.parser.parse_function(f"{header} {signature} {{ {function.body} }}")
    return result


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
