"""The custom nodes, each exported from a call of its torch operator."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from export.onnx.functions import functions
from export.onnx.graph import OPSET, add_metadata, tidy
from export.ops.record import Function
from export.tensorrt.engine_graph import translations
from kernels.cases.record import Draw

CHANNELS = 16
TRACED = (6, CHANNELS, 6, 10)  # a model is for any batch, height and width


class _Drawn(Draw):
    """Knows which tensors are features."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype, "cpu")
        self.features: list[Tensor] = []

    def feature(self, n: int, channels: int, height: int, width: int) -> Tensor:
        self.features.append(super().feature(n, channels, height, width))
        return self.features[-1]


class _Calls(nn.Module):
    """The operator of every function, of tensors that stand one after the other."""

    def __init__(self, calls: list[tuple[Any, tuple[Any, ...]]]) -> None:
        super().__init__()
        self._calls = calls

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        following = iter(tensors)
        return tuple(
            operator(*(next(following) if isinstance(value, Tensor) else value for value in arguments))
            for operator, arguments in self._calls
        )


def arguments_of(nodes: Iterable[Function], shape: tuple[int, int, int, int], draw: Draw) -> list[tuple[Any, ...]]:
    """What the operator of every function is called with."""
    return [function.case(*shape).make(draw) for function in nodes]


def tensors_of(arguments: Iterable[tuple[Any, ...]]) -> dict[str, Tensor]:
    """By the names that they have as inputs of a model."""
    return {
        f"{call}_{place}": value
        for call, values in enumerate(arguments)
        for place, value in enumerate(values)
        if isinstance(value, Tensor)
    }


def exported(nodes: Iterable[Function], dtype: torch.dtype) -> Any:
    """An ONNX model with one node of each function, whose output has the function's name."""
    nodes, draw = list(nodes), _Drawn(dtype)
    arguments = arguments_of(nodes, TRACED, draw)
    tensors = tensors_of(arguments)
    operators = [function.case(*TRACED).operation.operator for function in nodes]
    calls = list(zip(operators, arguments, strict=True))
    sizes = dict.fromkeys((0, 2, 3), Dim.AUTO)
    dynamic = tuple(sizes if any(x is one for one in draw.features) else {} for x in tensors.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            _Calls(calls).eval(),
            tuple(tensors.values()),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            input_names=list(tensors),
            output_names=[function.name for function in nodes],
            dynamic_shapes=(dynamic,),
            custom_translation_table=translations(),
            verbose=False,
        )
    assert program is not None
    model = tidy(program.model)
    model.functions.extend(functions().values())
    add_metadata(model, {"sha256": "0"})
    return model


def computed(model: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The outputs of a model on ONNX Runtime, by name."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    results = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
    return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}
