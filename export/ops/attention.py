"""Single-head attention over all pixels; queries, keys and values are concatenated to (N, 3C, H, W)."""

from __future__ import annotations

from typing import Any

from export.ops.record import Function, Record
from export.ops.shared import ceil_div, node, own
from export.tensorrt.plugin_kernels import Plugin
from kernels import attention
from kernels.cases.attention import attend


def _translate(qkv: Any) -> Any:
    return own.dmfnet_attention(qkv, scale=(int(qkv.shape[1]) // 3) ** -0.5)


# scale is 1 / sqrt(C).
_BODY = """
    query, key, value = Split <axis = 1, num_outputs = 3> (qkv)
    flat = Constant <value_ints = [0, 0, -1]> ()
    q = Reshape (query, flat)
    k = Reshape (key, flat)
    v = Reshape (value, flat)
    rows = Transpose <perm = [0, 2, 1]> (q)
    products = MatMul (rows, k)
    products_32 = Cast <to = 1> (products)
    factor = Constant <value_float: float = @scale> ()
    scores = Mul (products_32, factor)
    weights_32 = Softmax <axis = -1> (scores)
    weights = CastLike (weights_32, qkv)
    columns = Transpose <perm = [0, 2, 1]> (weights)
    attended = MatMul (v, columns)
    shape = Shape (query)
    out = Reshape (attended, shape)
"""

RECORD = Record(
    translations={"attention": _translate},
    functions=(
        Function(
            name="dmfnet_attention",
            inputs=("qkv",),
            attributes={"scale": "float"},
            output="out",
            body=_BODY,
            plugins=node("attention", "qkv", "out"),
            case=attend,
        ),
    ),
    plugins=(
        Plugin(
            "dmfnet_attention_kernel",
            attention.attention_kernel,
            ("qkv",),
            {"out": lambda s: (s.n, s.channels // 3, s.height, s.width)},
            lambda qkv: attention.plan(qkv),
            # One tactic: twice the queries need too much shared memory, half of them are too few for tensor cores.
            programs=lambda s, constants: ceil_div(s.tokens, constants["QUERIES"]),
        ),
    ),
)
