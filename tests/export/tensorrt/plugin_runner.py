"""A graph of plugins, run on a CPU: every node is the launch that the plugin plans, in Triton's interpreter.

Run as a program by test_plugins.py, with TRITON_INTERPRET=1: kernels imported for the interpreter cannot be compiled.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from export.ops import PLUGINS
from export.tensorrt.plugin_kernels import FEATURE_MAPS, Plugin


class Symbol:
    """A number that is not known before an engine runs, with the operations that TensorRT's expressions have."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __add__(self, other: Any) -> Symbol:
        return Symbol(self.value + number(other))

    def __sub__(self, other: Any) -> Symbol:
        return Symbol(self.value - number(other))

    def __mul__(self, other: Any) -> Symbol:
        return Symbol(self.value * number(other))

    def __floordiv__(self, other: Any) -> Symbol:
        return Symbol(self.value // number(other))

    def __lt__(self, other: Any) -> Symbol:
        return Symbol(int(self.value < number(other)))


def number(extent: Any) -> int:
    return extent.value if isinstance(extent, Symbol) else extent


def given(name: str, values: Any) -> Tensor:
    """As TensorRT would have it in memory."""
    layout = torch.channels_last if name in FEATURE_MAPS else torch.contiguous_format
    return torch.from_numpy(values).contiguous(memory_format=layout)


def run(plugin: Plugin, tensors: dict[str, Tensor], attributes: dict[str, Any], tactic: int, dynamic: bool) -> Any:
    """The outputs of one launch, which are NaN before it."""
    shapes: dict[str, list[Any]] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if dynamic:
        for name in FEATURE_MAPS & set(shapes):
            n, channels, height, width = shapes[name]
            shapes[name] = [Symbol(n), channels, Symbol(height), Symbol(width)]
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    launch = plugin.launch(shapes, dtypes, attributes, tactic if tactic in plugin.tactics else 1)
    sizes = plugin.sizes(shapes)
    outputs = {}
    for name, shape in plugin.outputs.items():
        layout = torch.channels_last if name in FEATURE_MAPS else torch.contiguous_format
        extents = [number(extent) for extent in shape(sizes)]
        outputs[name] = torch.empty(extents, memory_format=layout).fill_(float("nan"))
    arguments = {
        **dict(launch.signature.constants),
        **{name: number(value) for name, value in launch.integers.items()},
        **{name: tensor for name, tensor in tensors.items() if name in plugin.kernel.arg_names},
        **outputs,
    }
    plugin.kernel[tuple(number(size) for size in launch.grid)](**arguments)
    return tuple(output.numpy() for output in outputs.values())


def operator(plugin: Plugin, tactic: int, dynamic: bool) -> type[OpRun]:
    """The plugin, for onnx's own evaluator."""

    def _run(self: Any, *inputs: Any, **_: Any) -> Any:
        tensors = {name: given(name, values) for name, values in zip(plugin.inputs, inputs, strict=True)}
        attributes = {name: kind(getattr(self, name)) for name, kind in plugin.attributes.items()}
        return run(plugin, tensors, attributes, tactic, dynamic)

    return type(plugin.name, (OpRun,), {"op_domain": "dmfnet", "_run": _run})


def main() -> None:
    """Graph, inputs (.npz), results to write (.npz), tactic, and whether sizes are unknown when it is planned."""
    graph, inputs, results, tactic, dynamic = sys.argv[1:]
    model = onnx.load(graph)
    operators = [operator(plugin, int(tactic), dynamic == "dynamic") for plugin in PLUGINS]
    evaluator = ReferenceEvaluator(model, new_ops=operators)
    found = evaluator.run(None, dict(np.load(Path(inputs))))
    np.savez(results, **dict(zip(evaluator.output_names, found, strict=True)))


if __name__ == "__main__":
    main()
