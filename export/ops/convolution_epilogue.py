"""The epilogue of a convolution as plain ONNX nodes, which TensorRT fuses with the convolution before them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from export.ops.record import Record
from export.ops.shared import ALL_TACTICS, ints, op, parts
from export.tensorrt.plugin_kernels import Plugin
from kernels import convolution_epilogue
from kernels.launch import Plan


def _translate(h: Any, bias: Any = None, residual: Any = None, relu: bool = False) -> Any:
    result = h if bias is None else op.Add(h, op.Reshape(bias, ints(-1, 1, 1)))
    result = op.Relu(result) if relu else result
    return result if residual is None else op.Add(result, residual)


def _translate_with_statistics(h: Any, bias: Any = None, residual: Any = None, relu: bool = False) -> Any:
    """Write a placeholder for the statistics: the normalization nodes compute their own."""
    return _translate(h, bias, residual, relu), op.Constant(value_float=0.0)


def _plan_statistics(h: Tensor) -> Plan:
    return convolution_epilogue.plan(h, None, None, False, write=False, statistics=True)


RECORD = Record(
    translations={
        "convolution_epilogue": _translate,
        "convolution_epilogue_with_statistics": _translate_with_statistics,
    },
    plugins=(
        # The first launch of every normalization.
        Plugin(
            "dmfnet_statistics_kernel",
            convolution_epilogue.epilogue_kernel,
            ("h",),
            {"statistics": lambda s: (s.n, s.most_parts, 2, s.channels)},
            _plan_statistics,
            programs=parts,
            tile="PIXELS",
            tactics=ALL_TACTICS,
        ),
    ),
)
