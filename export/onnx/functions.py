"""The fused operations as ONNX functions: one custom node each, whose body says what it computes in ONNX's own terms.

A parser that knows no such node takes the body. TensorRT with our plugins takes a kernel in its place (see
`export.tensorrt.plugins`). Feature maps are (N, C, H, W), of half precision or float32; normalization statistics, the
softmax
and the sum over a group are float32 in any case. Names are lower case and our own: TensorRT's parser matches its
operators by name, whatever the domain.
"""

from __future__ import annotations

from typing import Any

from dmfnet_fast.errors import require

onnx = require("onnx", extra="export")

DOMAIN = "dmfnet"
OPSET = 20  # the newest that TensorRT 10.3 (JetPack 6) reads


def _group_norm(silu: bool = True) -> str:
    """Statements for y = SiLU of GroupNorm of v, float32, as x's type.

    As InstanceNormalization of groups: ONNX's GroupNormalization needs TensorRT 10.9, and this becomes the same
    kernels.
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


# By name: inputs, attributes with their types, output, body. Functions do not call each other: TensorRT resolves the
# attributes of a function in a function wrongly (seen in TensorRT-RTX 1.7).
_FUNCTIONS: dict[str, tuple[tuple[str, ...], dict[str, str], str, str]] = {
    "dmfnet_group_norm": (
        ("x", "weight", "bias"),
        {"groups": "int", "eps": "float"},
        "y",
        "v = Cast <to = 1> (x)" + _group_norm(silu=False),
    ),
    "dmfnet_group_norm_silu": (
        ("x", "weight", "bias"),
        {"groups": "int", "eps": "float"},
        "y",
        "v = Cast <to = 1> (x)" + _group_norm(),
    ),
    # Of the concatenation of x and skip along the channels.
    "dmfnet_group_norm_silu_joined": (
        ("x", "skip", "weight", "bias"),
        {"groups": "int", "eps": "float"},
        "y",
        "joined = Concat <axis = 1> (x, skip) v = Cast <to = 1> (joined)" + _group_norm(),
    ),
    # Of x + noise_bias, (3, C) float32: row r for the r-th third of the batch.
    "dmfnet_group_norm_silu_biased": (
        ("x", "noise_bias", "weight", "bias"),
        {"groups": "int", "eps": "float"},
        "y",
        """
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
        + _group_norm(),
    ),
    # (w x + (1 - w) y + s, s = x + y, w = s sigmoid(own * s + other * spatial + gain channel + bias)), the 1x1, 7x7
    # and 3x3 convolutions reflecting at the borders; gain is the sum of each kernel of `other_weight`, (1, C, 1, 1).
    "dmfnet_fusion_gate": (
        (
            *("x", "y", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias", "spatial_weight"),
            *("spatial_bias", "own_weight", "other_weight", "gain", "pixel_bias"),
        ),
        {"channels": "int"},
        "out",
        """
    s = Add (x, y)
    pixels = Constant <value_ints = [2, 3]> ()
    pooled = ReduceMean <keepdims = 1> (s, pixels)
    reduced = Conv (pooled, reduce_weight, reduce_bias)
    hidden = Relu (reduced)
    by_channel = Conv (hidden, expand_weight, expand_bias)
    channel_axis = Constant <value_ints = [1]> ()
    mean = ReduceMean <keepdims = 1> (s, channel_axis)
    largest = ReduceMax <keepdims = 1> (s, channel_axis)
    seen = Concat <axis = 1> (mean, largest)
    three = Constant <value_ints = [0, 0, 3, 3, 0, 0, 3, 3]> ()
    seen_around = Pad <mode = "reflect"> (seen, three)
    by_pixel = Conv (seen_around, spatial_weight, spatial_bias)
    one = Constant <value_ints = [0, 0, 1, 1, 0, 0, 1, 1]> ()
    s_around = Pad <mode = "reflect"> (s, one)
    own = Conv <group: int = @channels> (s_around, own_weight, pixel_bias)
    by_pixel_around = Pad <mode = "reflect"> (by_pixel, one)
    other = Conv (by_pixel_around, other_weight)
    by_gain = Mul (gain, by_channel)
    local = Add (own, other)
    total = Add (local, by_gain)
    g = Sigmoid (total)
    w = Mul (s, g)
    difference = Sub (x, y)
    moved = Mul (w, difference)
    base = Add (s, y)
    out = Add (base, moved)
""",
    ),
    "dmfnet_upsample_add": (
        ("x", "addend"),
        {},
        "out",
        """
    scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
    large = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , scales)
    out = Add (large, addend)
""",
    ),
    "dmfnet_upsample_relu": (
        ("x",),
        {},
        "out",
        """
    scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
    large = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , scales)
    out = Relu (large)
""",
    ),
    # One head over all pixels; queries, keys and values beside each other, (N, 3C, H, W); scale is 1 / sqrt(C).
    "dmfnet_attention": (
        ("qkv",),
        {"scale": "float"},
        "out",
        """
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
""",
    ),
}


def functions() -> dict[str, Any]:
    """An `onnx.FunctionProto` for each fused operation, by name."""
    result = {}
    for name, (inputs, attributes, output, body) in _FUNCTIONS.items():
        declared = f"<{', '.join(attributes)}>" if attributes else ""
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]> {name} {declared}'
        result[name] = onnx.parser.parse_function(f"{header} ({', '.join(inputs)}) => ({output}) {{ {body} }}")
    return result


def register_schemas() -> None:
    """Tell onnx of the custom nodes, which exporters ask it for. Safe to repeat."""
    types = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)"]
    kinds = {"int": onnx.defs.OpSchema.AttrType.INT, "float": onnx.defs.OpSchema.AttrType.FLOAT}
    for name, (inputs, attributes, output, _) in _FUNCTIONS.items():
        if onnx.defs.has(name, DOMAIN):
            continue
        # The noise bias alone is float32 in any case.
        parameter = onnx.defs.OpSchema.FormalParameter
        given = [parameter(label, "tensor(float)" if label == "noise_bias" else "T") for label in inputs]
        schema = onnx.defs.OpSchema(
            name,
            DOMAIN,
            1,
            inputs=given,
            outputs=[parameter(output, "T")],
            type_constraints=[("T", types, "of the feature maps")],
            attributes=[onnx.defs.OpSchema.Attribute(label, kinds[kind]) for label, kind in attributes.items()],
        )
        onnx.defs.register_schema(schema)
