"""The bodies of the custom nodes on ONNX Runtime, against the kernels' references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from export.onnx.functions import DOMAIN, OPSET, functions, register_schemas
from kernels import attention, fusion_gate, group_norm_silu, upsample_add
from kernels.cases import Draw

TYPES = {torch.float32: onnx.TensorProto.FLOAT, torch.float16: onnx.TensorProto.FLOAT16}
# Relative to the largest value. In float16 a body rounds between its operators, the reference at the end.
LIMITS = {torch.float32: 3e-6, torch.float16: 4e-3}


def _body(name: str, inputs: dict[str, Tensor], **attributes: Any) -> Tensor:
    """What the function makes of tensors whose batch and size the model does not know."""
    function = functions()[name]
    values = [
        onnx.helper.make_tensor_value_info(label, TYPES[tensor.dtype], [None] * tensor.dim())
        for label, tensor in inputs.items()
    ]
    node = onnx.helper.make_node(name, list(inputs), ["out"], domain=DOMAIN, **attributes)
    kind = TYPES[next(iter(inputs.values())).dtype]
    graph = onnx.helper.make_graph([node], name, values, [onnx.helper.make_tensor_value_info("out", kind, [None] * 4)])
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {label: tensor.numpy() for label, tensor in inputs.items()})
    return torch.from_numpy(np.asarray(result))


def _norm(draw: Draw) -> tuple[str, dict[str, Tensor], dict[str, Any], Tensor]:
    x, weight, bias = draw.feature(3, 24, 5, 7), draw.parameter(24, shift=1.0), draw.parameter(24)
    expected = group_norm_silu.reference(x, None, None, None, None, weight, bias, 6, 1e-5, False)
    return "dmfnet_group_norm", {"x": x, "weight": weight, "bias": bias}, {"groups": 6, "eps": 1e-5}, expected


def _norm_silu(draw: Draw) -> tuple[str, dict[str, Tensor], dict[str, Any], Tensor]:
    x, weight, bias = draw.feature(1, 32, 8, 6), draw.parameter(32, shift=1.0), draw.parameter(32)
    expected = group_norm_silu.reference(x, None, None, None, None, weight, bias, 8, 1e-3, True)
    return "dmfnet_group_norm_silu", {"x": x, "weight": weight, "bias": bias}, {"groups": 8, "eps": 1e-3}, expected


def _norm_joined(draw: Draw) -> tuple[str, dict[str, Tensor], dict[str, Any], Tensor]:
    """A group lies on the seam."""
    x, skip = draw.feature(2, 20, 4, 6), draw.feature(2, 16, 4, 6)
    weight, bias = draw.parameter(36, shift=1.0), draw.parameter(36)
    expected = group_norm_silu.reference(x, None, skip, None, None, weight, bias, 3, 1e-5, True)
    inputs = {"x": x, "skip": skip, "weight": weight, "bias": bias}
    return "dmfnet_group_norm_silu_joined", inputs, {"groups": 3, "eps": 1e-5}, expected


def _norm_biased(draw: Draw) -> tuple[str, dict[str, Tensor], dict[str, Any], Tensor]:
    x, rows = draw.feature(12, 16, 4, 6), draw.table(3, 16)
    weight, bias = draw.parameter(16, shift=1.0), draw.parameter(16)
    expected = group_norm_silu.reference(x, None, None, None, rows, weight, bias, 4, 1e-5, True)
    inputs = {"x": x, "noise_bias": rows, "weight": weight, "bias": bias}
    return "dmfnet_group_norm_silu_biased", inputs, {"groups": 4, "eps": 1e-5}, expected


def _gate(draw: Draw) -> tuple[str, dict[str, Tensor], dict[str, Any], Tensor]:
    x, y = draw.feature(2, 16, 5, 9), draw.feature(2, 16, 5, 9)
    reduce, expand = draw.parameter(2, 16, scale=0.25), draw.parameter(16, 2)
    spatial, pixel = draw.parameter(1, 2, 7, 7, scale=0.1), draw.parameter(2, 9, 16, scale=0.3)
    biases = {name: draw.parameter(size, scale=0.1) for name, size in (("r", 2), ("e", 16), ("s", 1), ("p", 16))}
    expected = fusion_gate.reference(
        x, y, reduce, biases["r"], expand, biases["e"], spatial, biases["s"], pixel, biases["p"]
    )
    own, other = (kernel.t().reshape(16, 1, 3, 3).contiguous() for kernel in pixel)
    inputs = {
        "x": x,
        "y": y,
        "reduce_weight": reduce[:, :, None, None],
        "reduce_bias": biases["r"],
        "expand_weight": expand[:, :, None, None],
        "expand_bias": biases["e"],
        "spatial_weight": spatial,
        "spatial_bias": biases["s"],
        "own_weight": own,
        "other_weight": other,
        "gain": other.sum((1, 2, 3)).reshape(1, 16, 1, 1),
        "pixel_bias": biases["p"],
    }
    return "dmfnet_fusion_gate", inputs, {"channels": 16}, expected


def _upsample_add(draw: Draw) -> tuple[str, dict[str, Tensor], dict[str, Any], Tensor]:
    x, addend = draw.feature(2, 8, 3, 5), draw.feature(2, 8, 6, 10)
    return "dmfnet_upsample_add", {"x": x, "addend": addend}, {}, upsample_add.reference(x, addend, False)


def _upsample_relu(draw: Draw) -> tuple[str, dict[str, Tensor], dict[str, Any], Tensor]:
    x = draw.feature(1, 8, 4, 3)
    return "dmfnet_upsample_relu", {"x": x}, {}, upsample_add.reference(x, None, True)


def _attention(draw: Draw) -> tuple[str, dict[str, Tensor], dict[str, Any], Tensor]:
    qkv = draw.feature(3, 48, 4, 5)
    return "dmfnet_attention", {"qkv": qkv}, {"scale": 0.25}, attention.reference(qkv)


MAKERS: tuple[Callable[[Draw], tuple[str, dict[str, Tensor], dict[str, Any], Tensor]], ...] = (
    *(_norm, _norm_silu, _norm_joined, _norm_biased),
    *(_gate, _upsample_add, _upsample_relu, _attention),
)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("make", MAKERS)
def test_body(make: Callable[[Draw], Any], dtype: torch.dtype) -> None:
    name, inputs, attributes, expected = make(Draw(dtype, "cpu"))
    result = _body(name, inputs, **attributes)
    assert result.dtype == dtype
    assert result.shape == expected.shape
    error = (result.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= LIMITS[dtype]


def test_statistics_are_float32() -> None:
    """A mean of 3 and a deviation of 0.05: squares in half precision would lose it."""
    x = Draw(torch.float16, "cpu", scale=0.05, shift=3.0).feature(1, 16, 16, 16)
    ones, zeros = torch.ones(16, dtype=torch.float16), torch.zeros(16, dtype=torch.float16)
    expected = group_norm_silu.reference(x, None, None, None, None, ones, zeros, 4, 1e-5, False)
    result = _body("dmfnet_group_norm", {"x": x, "weight": ones, "bias": zeros}, groups=4, eps=1e-5)
    assert (result - expected).abs().max() <= 4e-3


def test_all_are_tested_and_known() -> None:
    assert {make(Draw(torch.float32, "cpu"))[0] for make in MAKERS} == set(functions())
    register_schemas()
    register_schemas()
    for name, function in functions().items():
        schema = onnx.defs.get_schema(name, domain=DOMAIN)
        assert [given.name for given in schema.inputs] == list(function.input)
        assert set(schema.attributes) == set(function.attribute)
