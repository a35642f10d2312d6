"""What TensorRT's builder does with our plugins, on its real bindings: run as a program by test_plugins.py.

The bindings and their `tensorrt.plugin` package are real: decorators, checks, descriptors, plugin fields, templates of
plugins and creators. The libraries below are empty. What those would do is played here: expressions of dimensions and
lists of them, the registry, and a build, which calls a plugin in this order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import tensorrt_bindings as trt

from dmfnet_fast.errors import EngineError

sys.modules["tensorrt"] = trt
OPERATIONS: dict[Any, Callable[[int, int], int]] = {
    trt.DimensionOperation.SUM: lambda a, b: a + b,
    trt.DimensionOperation.SUB: lambda a, b: a - b,
    trt.DimensionOperation.PROD: lambda a, b: a * b,
    trt.DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
    trt.DimensionOperation.LESS: lambda a, b: int(a < b),
}


class Expression:
    """In place of trt.IDimensionExpr: a number, or what is known when the engine runs."""

    def __init__(self, evaluate: Callable[[dict[str, int]], int], constant: bool) -> None:
        self.evaluate, self.constant = evaluate, constant

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        assert self.constant
        return self.evaluate({})


class Builder:
    """In place of trt.IExprBuilder."""

    def constant(self, value: int) -> Expression:
        return Expression(lambda _: value, True)

    def operation(self, operation: Any, first: Expression, second: Expression) -> Expression:
        apply = OPERATIONS[operation]
        return Expression(
            lambda sizes: apply(first.evaluate(sizes), second.evaluate(sizes)), first.constant and second.constant
        )


class Argument:
    """In place of trt.ISymExpr, which takes native expressions alone."""

    def __init__(self) -> None: ...


class Registry:
    """In place of trt.IPluginRegistry."""

    creators: ClassVar[dict[tuple[str, str, str], Any]] = {}

    @classmethod
    def get_creator(cls, name: str, version: str, namespace: str) -> Any:
        return cls.creators.get((namespace, name, version))

    @classmethod
    def register_creator(cls, creator: Any, namespace: str) -> None:
        cls.creators[namespace, creator.name, creator.plugin_version] = creator


class Extras:
    """In place of trt.ISymExprs: where a plugin puts its extra arguments."""

    def __init__(self) -> None:
        self.nbSymExprs = 0
        self.kept: dict[int, Any] = {}

    def __setitem__(self, place: int, argument: Any) -> None:
        assert argument.dtype == trt.PluginArgDataType.INT32
        self.kept[place] = argument


trt.IDimensionExpr = Expression
trt.ISymExpr = Argument
trt.DimsExprs = lambda count: [None] * count
trt.get_plugin_registry = lambda: Registry


from export.tensorrt import plugins

DTYPES = {"float16": trt.DataType.HALF, "bfloat16": trt.DataType.BF16, "float32": trt.DataType.FLOAT}


def fields(attributes: dict[str, Any]) -> Any:
    """As the ONNX parser makes them: 32 bits each."""
    kinds = {int: (np.int32, trt.PluginFieldType.INT32), float: (np.float32, trt.PluginFieldType.FLOAT32)}
    return [
        trt.PluginField(name, np.array([value], kinds[type(value)][0]), kinds[type(value)][1])
        for name, value in attributes.items()
    ]


def described(shape: list[Any], dtype: Any, layout: Any) -> Any:
    """A tensor as a build describes it: -1 for what is not known."""
    result = trt.DynamicPluginTensorDesc()
    result.desc.dims = tuple(-1 if isinstance(size, str) else size for size in shape)
    result.desc.type, result.desc.format = dtype, layout
    return result


def expressions(shape: list[Any]) -> list[Expression]:
    def one(size: Any) -> Expression:
        return Expression(lambda sizes: sizes[size] if isinstance(size, str) else size, not isinstance(size, str))

    return [one(size) for size in shape]


def build(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plugin through one build: what it answers, for every tactic asked for."""
    plugins.register_plugins(request["architecture"])
    creator = Registry.creators["dmfnet", request["plugin"], "1"]
    strict = trt.QuickPluginCreationRequest.STRICT_AOT
    attributes = trt.PluginFieldCollection(fields(request["attributes"]))
    plugin = creator.create_plugin(request["plugin"], "dmfnet", attributes, trt.TensorRTPhase.BUILD, strict)
    inputs = request["inputs"]
    types = [DTYPES[given["dtype"]] for given in inputs]
    out_types = plugin.get_output_data_types(types, [len(given["shape"]) for given in inputs])
    builder = Builder()
    exprs = [expressions(given["shape"]) for given in inputs]
    shapes = plugin.get_output_shapes(exprs, [], builder)
    known = [[[size.evaluate(sizes) for size in shape] for shape in shapes] for sizes in request["sizes"]]
    linear = trt.TensorFormat.LINEAR
    tensors = [described(given["shape"], kind, linear) for given, kind in zip(inputs, types, strict=True)]
    tensors += [described(shape, kind, linear) for shape, kind in zip(known[0], out_types, strict=True)]
    offered = plugin.get_supported_format_combinations(tensors, len(inputs))
    assert len(offered) == len(tensors), "one combination"
    for tensor, one in zip(tensors, offered, strict=True):
        assert tensor.desc.type == one.type
        tensor.desc.format = one.format
    plugin.configure_plugin(tensors[: len(inputs)], tensors[len(inputs) :])
    tactics = sorted(plugin.get_valid_tactics())
    for tactic in request["tactics"] or tactics:
        plugin.set_tactic(tactic)
        launch, extras = SimpleNamespace(), Extras()
        plugin.get_launch_params(exprs, tensors, len(inputs), launch, extras, builder)
        described_inputs = [tensor.desc for tensor in tensors[: len(inputs)]]
        name, ptx = plugin.get_kernel(described_inputs, [tensor.desc for tensor in tensors[len(inputs) :]])

        def values(*expressions: Any) -> list[list[int]]:
            return [[int(each.expr.evaluate(sizes)) for each in expressions] for sizes in request["sizes"]]

        yield {
            "request": request,
            "tactic": tactic,
            "tactics": tactics,
            "name": name,
            "ptx": ptx.decode(),
            "grid": values(*(getattr(launch, f"grid_{axis}") for axis in "xyz")),
            "block": values(*(getattr(launch, f"block_{axis}") for axis in "xyz")),
            "shared": values(launch.shared_mem),
            "extras": values(*(extras.kept[place] for place in range(extras.nbSymExprs))),
            "outputs": known,
            "output_types": [kind.name for kind in out_types],
            "formats": [tensor.desc.format.name for tensor in tensors],
        }


def main() -> None:
    """Requests from one JSON file, answers to another."""
    answers: list[dict[str, Any]] = []
    for request in json.loads(Path(sys.argv[1]).read_text()):
        try:
            answers += build(request)
        except EngineError as error:
            answers.append({"request": request, "error": str(error)})
    result = {
        "answers": answers,
        "names": plugins.register_plugins(90),
        "creators": [name for _, name, _ in Registry.creators],
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
