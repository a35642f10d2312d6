"""The bodies of the custom nodes on ONNX Runtime, against the kernels' references."""

from __future__ import annotations

from pkgutil import iter_modules
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import export.ops
from export.onnx.functions import functions, inline, register_schemas
from export.onnx.graph import OPSET
from export.ops import FUNCTIONS
from export.ops.shared import DOMAIN
from kernels import group_norm_silu
from kernels.cases import RECORDS
from kernels.cases.record import Draw
from tests.export.exported import CHANNELS, arguments_of, computed, exported, tensors_of

# Relative to the largest value. In float16 a body rounds between its operators, the reference at the end.
LIMITS = {torch.float32: 3e-6, torch.float16: 4e-3}
SHAPE = (3, CHANNELS, 5, 7)
NODES = list(FUNCTIONS.values())


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_bodies(dtype: torch.dtype) -> None:
    """Of any batch and size, each as the exporter writes its operator."""
    model = exported(NODES, dtype)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node if node.domain == DOMAIN] == list(FUNCTIONS)
    arguments = arguments_of(NODES, SHAPE, Draw(dtype, "cpu"))
    results = computed(model, tensors_of(arguments))
    for function, given in zip(NODES, arguments, strict=True):
        expected = function.case(*SHAPE).operation.reference(*given)
        result = torch.from_numpy(results[function.name])
        assert (result.dtype, result.shape) == (dtype, expected.shape), function.name
        error = (result.double() - expected.double()).abs().max() / expected.double().abs().max()
        assert error <= LIMITS[dtype], function.name


def test_statistics_are_float32() -> None:
    """A mean of 3 and a deviation of 0.05: squares in half precision would lose it."""
    x = Draw(torch.float16, "cpu", scale=0.05, shift=3.0).feature(1, 16, 16, 16)
    ones, zeros = torch.ones(16, dtype=torch.float16), torch.zeros(16, dtype=torch.float16)
    tensors = {"x": x, "weight": ones, "bias": zeros}
    values = [
        onnx.helper.make_tensor_value_info(label, onnx.TensorProto.FLOAT16, [None] * tensor.dim())
        for label, tensor in tensors.items()
    ]
    name, half = "dmfnet_group_norm", onnx.TensorProto.FLOAT16
    node = onnx.helper.make_node(name, list(tensors), ["out"], domain=DOMAIN, groups=4, eps=1e-3)
    graph = onnx.helper.make_graph([node], name, values, [onnx.helper.make_tensor_value_info("out", half, [None] * 4)])
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[functions()[name]], ir_version=9)
    expected = group_norm_silu.reference(x, None, None, None, None, ones, zeros, 4, 1e-3, False)
    assert (torch.from_numpy(computed(model, tensors)["out"]) - expected).abs().max() <= 4e-3


def test_inlined_names_are_unique() -> None:
    """Tensors of the graph have the names of tensors in a function, which TensorRT 10.3 would confuse."""
    name = "dmfnet_group_norm"
    inside = next(node.output[0] for node in functions()[name].node if node.op_type == "InstanceNormalization")
    x = Draw(torch.float32, "cpu").feature(1, 16, 8, 8)
    tensors = {"x": x, "weight": torch.rand(16), "bias": torch.rand(16)}
    values = [
        onnx.helper.make_tensor_value_info(label, onnx.TensorProto.FLOAT, list(tensor.shape))
        for label, tensor in tensors.items()
    ]
    norms: dict[str, Any] = {"domain": DOMAIN, "groups": 4, "eps": 1e-5}
    nodes = [
        onnx.helper.make_node("Mul", ["x", "x"], [inside]),
        onnx.helper.make_node(name, ["x", "weight", "bias"], ["first"], **norms),
        onnx.helper.make_node(name, ["first", "bias", "weight"], ["second"], **norms),
        onnx.helper.make_node("Add", ["second", inside], ["out"]),
    ]
    output = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, list(x.shape))
    graph = onnx.helper.make_graph(nodes, "norms", values, [output])
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[functions()[name]], ir_version=9)
    flat = inline(model)
    assert not flat.functions
    assert [(entry.domain, entry.version) for entry in flat.opset_import] == [("", OPSET)]
    # Ones and zeros are constants, not computed.
    assert "ConstantOfShape" not in {node.op_type for node in flat.graph.node}
    names = [tensor for node in flat.graph.node for tensor in node.output]
    names += [tensor.name for tensor in flat.graph.initializer] + list(tensors)
    assert len(names) == len(set(names))
    np.testing.assert_allclose(computed(flat, tensors)["out"], computed(model, tensors)["out"], rtol=1e-5, atol=1e-5)


def test_every_file_is_that_of_a_kernel() -> None:
    """Others would be left out."""
    files = {file.name for file in iter_modules(export.ops.__path__)}
    assert files - set(RECORDS) == {"record", "shared"}


def test_all_are_known() -> None:
    register_schemas()
    register_schemas()
    for name, function in functions().items():
        schema = onnx.defs.get_schema(name, domain=DOMAIN)
        assert [given.name for given in schema.inputs] == list(function.input)
        assert set(schema.attributes) == set(function.attribute)
