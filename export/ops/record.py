"""Records that describe how the fused operations of a kernel module are exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from export.tensorrt.plugin_kernels import Plugin
from kernels.cases.record import Case


@dataclass(frozen=True)
class Function:
    """A custom node whose body defines it in standard ONNX operators.

    Feature maps are (N, C, H, W) in half precision or float32; normalization statistics, softmax and sums over all
    pixels are always float32.

    Attributes:
        name: name of the node.
        inputs: names of the input tensors.
        attributes: types of the attributes by name, "int" or "float".
        output: name of the output tensor.
        body: statements in ONNX's textual syntax that compute the output from the inputs.
        plugins: equivalent statements with plugin nodes, for TensorRT (see `shared.node`).
        case: for tests, a call of the operation that becomes this node, given the number of images and channels, the
            height and the width.
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
    """How the operations of one kernel module are exported.

    Attributes:
        translations: translation to ONNX for each of the module's torch operators, by name.
        functions: custom nodes that the translations write.
        plugins: kernel launches that replace the custom nodes in TensorRT.
    """

    translations: Mapping[str, Callable[..., Any]]
    functions: tuple[Function, ...] = ()
    plugins: tuple[Plugin, ...] = ()
