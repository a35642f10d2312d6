"""An engine's graph with our plugins in place of the fused operations."""

from __future__ import annotations

from typing import Any

from dmfnet_fast.errors import EngineError, require
from export.onnx.functions import DOMAIN, OPSET
from export.onnx.graph import add_metadata, tidy

onnx = require("onnx", extra="export")
inliner = require("onnx.inliner", extra="export")

import onnx_ir  # noqa: E402

# With aot, TensorRT takes the plugin compiled ahead of time or none.
_MARKS = f'plugin_namespace = "{DOMAIN}", plugin_version = "1", aot = 1'


def _node(plugin: str, inputs: str, outputs: str, attributes: str = "") -> str:
    marks = f"{_MARKS}, {attributes}" if attributes else _MARKS
    return f"{outputs} = {DOMAIN}.dmfnet_{plugin}_kernel <{marks}> ({inputs})\n"


def _norm(silu: int = 1, joined: bool = False, biased: bool = False) -> str:
    both = "x, skip" if joined else "x"
    kind = "_joined" if joined else "_biased" if biased else ""
    tables = "statistics, skip_statistics" if joined else "statistics, noise_bias" if biased else "statistics"
    return (
        _node("statistics", "x", "statistics")
        + (_node("statistics", "skip", "skip_statistics") if joined else "")
        + _node(f"moments{kind}", f"{both}, {tables}, weight", "moments", "groups: int = @groups, eps: float = @eps")
        + _node(f"normalize{'_joined' if joined else ''}", f"{both}, moments, bias", "y", f"silu = {silu}")
    )


# The kernel's parameters of the pixel attention are (2, 9, C): taps of every channel, for s and for q.
_GATE = (
    """
    taps = Constant <value_ints = [1, -1, 9]> ()
    own_taps = Reshape (own_weight, taps)
    other_taps = Reshape (other_weight, taps)
    both_taps = Concat <axis = 0> (own_taps, other_taps)
    pixel_weight = Transpose <perm = [0, 2, 1]> (both_taps)
"""
    + _node("pool", "x, y", "seen, sums")
    + _node("channel", "x, sums, reduce_weight, reduce_bias, expand_weight, expand_bias", "by_channel")
    + _node("spatial", "x, seen, spatial_weight, spatial_bias", "by_pixel")
    + _node("gate", "x, y, by_channel, by_pixel, pixel_weight, pixel_bias", "out")
)

_BODIES = {
    "dmfnet_group_norm": _norm(silu=0),
    "dmfnet_group_norm_silu": _norm(),
    "dmfnet_group_norm_silu_joined": _norm(joined=True),
    "dmfnet_group_norm_silu_biased": _norm(biased=True),
    "dmfnet_fusion_gate": _GATE,
    "dmfnet_upsample_add": _node("upsample_add", "x, addend", "out"),
    "dmfnet_upsample_relu": _node("upsample_relu", "x", "out"),
    "dmfnet_attention": _node("attention", "qkv", "out"),
}


def _replaced(function: Any) -> Any:
    """A function with the same signature, of plugins."""
    if function.name not in _BODIES:
        raise EngineError(f"the graph has a function {function.name} that there are no plugins for: export it anew")
    attributes = f"<{', '.join(function.attribute)}>" if function.attribute else ""
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]> {function.name} {attributes}'
    signature = f"({', '.join(function.input)}) => ({', '.join(function.output)})"
    return onnx.parser.parse_function(f"{header} {signature} {{ {_BODIES[function.name]} }}")


def with_plugins(model: Any) -> Any:
    """The graph of an engine (see `engine_graph`) with plugin nodes for its fused operations, and no functions.

    Args:
        model: an `onnx.ModelProto`; it stays as it is.

    Returns:
        An `onnx.ModelProto` with the same inputs, outputs and metadata. Statistics that two norms take of one tensor
        are taken once.

    Raises:
        EngineError: a fused operation is one that there are no plugins for.
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
