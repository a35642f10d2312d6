"""What exports know of a fused operation: one record for each kernel file that graphs for others have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from export.tensorrt.plugin_kernels import Plugin
from kernels.cases.record import Case


@dataclass(frozen=True)
class Function:
    """A custom node, with a body that says what it computes in ONNX's own operators.

    Functions do not call each other: TensorRT resolves the attributes of a function in a function wrongly (seen in
    TensorRT-RTX 1.7). Feature maps are (N, C, H, W), of half precision or float32; normalization statistics, the
    softmax and the sum over a group are float32 in any case. Names are lower case and our own: TensorRT's parser
    matches its operators by name, whatever the domain.

    Attributes:
        name: of the node.
        inputs: names of the tensors.
        attributes: their types by name, "int" or "float".
        output: name of the result.
        body: statements in ONNX's textual syntax, from the inputs to the output.
        plugins: the same statements with nodes of plugins, for TensorRT (see `shared.node`).
        case: a call of the operation that becomes this node: of so many images, channels, rows and columns. For tests.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, str]
    output: str
    body: str
    plugins: str
    case: Callable[[int, int, int, int], Case]


@dataclass(frozen=True)
class Record:
    """Of one kernel file.

    Attributes:
        translations: what the exporter writes for its torch operators, by their names.
        functions: the custom nodes that it writes.
        plugins: the launches that TensorRT has in place of those.
    """

    translations: Mapping[str, Callable[..., Any]]
    functions: tuple[Function, ...] = ()
    plugins: tuple[Plugin, ...] = ()
