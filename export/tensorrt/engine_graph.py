"""The ONNX model that TensorRT engines are built from."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.model import DMFNet, optimize
from dmfnet_fast.model.fused import FusedPasses, PixelLinear
from dmfnet_fast.precision import FloatPrecision
from export.onnx.functions import functions, inline, register_schemas
from export.onnx.graph import finish, tidy, trace
from export.ops import TRANSLATIONS


class PixelConv(nn.Module):
    """A `PixelLinear` written as a 1x1 convolution again, which TensorRT fuses with its neighbors."""

    def __init__(self, linear: PixelLinear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.t()[:, :, None, None].contiguous(), requires_grad=False)

    def forward(self, x: Tensor, bias: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        product = F.conv2d(x, self.weight, bias)
        return product if onto is None else onto + product


class ShuffledUpsample(nn.Module):
    """A 4x4 transposed convolution with stride 2, computed as a 3x3 convolution and a pixel shuffle.

    The convolution computes the four phases of the output, and the shuffle interleaves them. TensorRT-RTX 1.7 has no
    transposed convolution in bfloat16. Output row 2y uses taps 3 and 1 on input rows y - 1 and y, output row 2y + 1
    uses taps 2 and 0 on rows y and y + 1; columns work the same way.
    """

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        kernel = conv.weight.detach().transpose(0, 1)  # (outputs, inputs, 4, 4)
        weight = kernel.new_zeros(kernel.shape[0], 2, 2, kernel.shape[1], 3, 3)
        # For each phase: positions in the 3x3 kernel, and the taps of the 4x4 kernel that go there.
        taps = {0: ([0, 1], [3, 1]), 1: ([1, 2], [2, 0])}
        for i, (rows, from_rows) in taps.items():
            for j, (columns, from_columns) in taps.items():
                for row, from_row in zip(rows, from_rows, strict=True):
                    weight[:, i, j, :, row, columns] = kernel[:, :, from_row, from_columns]
        self.weight = nn.Parameter(weight.flatten(0, 2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(x, self.weight, padding=1), 2)


def _restore_convolutions(module: nn.Module, shuffle: bool) -> None:
    """Replace matrix products by 1x1 convolutions and, if `shuffle`, transposed convolutions by `ShuffledUpsample`."""
    for name, child in module.named_children():
        if isinstance(child, PixelLinear):
            setattr(module, name, PixelConv(child))
        elif shuffle and isinstance(child, nn.ConvTranspose2d):
            assert child.bias is None
            setattr(module, name, ShuffledUpsample(child))
        else:
            _restore_convolutions(child, shuffle)


def translations() -> dict[Any, Any]:
    """The translation to ONNX of each torch operator of `kernels`; also registers the schemas of the custom nodes."""
    register_schemas()
    return {getattr(torch.ops.dmfnet, name).default: translate for name, translate in TRANSLATIONS.items()}


def to_engine_onnx(
    model: DMFNet, precision: FloatPrecision, sha256: str | None = None, with_functions: bool = False
) -> Any:
    """Export a network for TensorRT, for any batch and any size that is a multiple of 16, at least 64.

    All passes of a pair form one batch. The types are fixed in the graph: feature maps and convolutions have the given
    precision; diffusion, normalization, softmax and the last convolution are float32. ONNX allows bfloat16 convolutions
    only from opset 22 on, but TensorRT accepts them in opset 20: a bfloat16 model works only with TensorRT.

    Args:
        model: the network as trained; it is not modified.
        precision: precision of the arithmetic.
        sha256: hash of the weights as recorded in their file; None computes it from `model`.
        with_functions: leave the fused operations as custom nodes with their functions, which plugins replace.

    Returns:
        An `onnx.ModelProto` like that of `export.onnx.graph.to_onnx`.

    Raises:
        MissingExtraError: onnx, onnxscript or triton is not installed.
    """
    net = optimize(model, precision, kernels=True)
    assert isinstance(net, FusedPasses)
    _restore_convolutions(net, shuffle=precision == "bfloat16")
    proto = tidy(trace(net, interface_of(model.config.to_dict()), translations()))
    proto.functions.extend(functions().values())
    return finish(proto if with_functions else inline(proto), model, precision, sha256)


def configuration(proto: Any) -> dict[str, Any]:
    """The metadata of an exported model, with JSON values decoded."""
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return {key: json.loads(value) if value[:1] in "{[" else value for key, value in metadata.items()}
