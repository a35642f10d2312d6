"""The network as the ONNX model that TensorRT engines are built from, with its fused operations as custom nodes."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.errors import require
from dmfnet_fast.model import DMFNet, optimize
from dmfnet_fast.model.fused import FusedPasses, PixelLinear
from dmfnet_fast.precision import FloatPrecision
from export.onnx.functions import DOMAIN, functions, register_schemas
from export.onnx.graph import finish, tidy, trace

onnx = require("onnx", extra="export")

from onnxscript import opset20  # noqa: E402
from onnxscript.values import Opset  # noqa: E402

op: Any = opset20  # its annotations forbid what it accepts
_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
}


class PixelConv(nn.Module):
    """A `PixelLinear` as the 1x1 convolution that it came from, which TensorRT fuses with what surrounds it."""

    def __init__(self, linear: PixelLinear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.t()[:, :, None, None].contiguous(), requires_grad=False)

    def forward(self, x: Tensor, bias: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        product = F.conv2d(x, self.weight, bias)
        return product if onto is None else onto + product


class ShuffledUpsample(nn.Module):
    """A transposed convolution of 4x4 with stride 2 as a convolution for each of the four phases, interleaved.

    TensorRT-RTX 1.7 has no transposed convolution in bfloat16. An output row 2y meets the taps 3 and 1 on the rows
    y - 1 and y, a row 2y + 1 the taps 2 and 0 on y and y + 1; columns likewise.
    """

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        kernel = conv.weight.detach().transpose(0, 1)  # (outputs, inputs, 4, 4)
        weight = kernel.new_zeros(kernel.shape[0], 2, 2, kernel.shape[1], 3, 3)
        taps = {0: ([0, 1], [3, 1]), 1: ([1, 2], [2, 0])}  # for each phase: where in the 3x3 kernel, which taps
        for i, (rows, from_rows) in taps.items():
            for j, (columns, from_columns) in taps.items():
                for row, from_row in zip(rows, from_rows, strict=True):
                    weight[:, i, j, :, row, columns] = kernel[:, :, from_row, from_columns]
        self.weight = nn.Parameter(weight.flatten(0, 2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(F.conv2d(x, self.weight, padding=1), 2)


def _restore_convolutions(module: nn.Module, shuffle: bool) -> None:
    """Write matrix products as convolutions, and, if asked to, transposed convolutions as plain ones."""
    for name, child in module.named_children():
        if isinstance(child, PixelLinear):
            setattr(module, name, PixelConv(child))
        elif shuffle and isinstance(child, nn.ConvTranspose2d):
            assert child.bias is None
            setattr(module, name, ShuffledUpsample(child))
        else:
            _restore_convolutions(child, shuffle)


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _epilogue(h: Any, bias: Any = None, residual: Any = None, relu: bool = False) -> Any:
    """Not a custom node: TensorRT fuses it with the convolution before it."""
    result = h if bias is None else op.Add(h, op.Reshape(bias, _ints(-1, 1, 1)))
    result = op.Relu(result) if relu else result
    return result if residual is None else op.Add(result, residual)


def _epilogue_with_statistics(h: Any, bias: Any = None, residual: Any = None, relu: bool = False) -> Any:
    """The statistics are left out: the normalization takes its own."""
    return _epilogue(h, bias, residual, relu), op.Constant(value_float=0.0)


def _diffuse(a: Any, b: Any, noise: Any, levels: Any, sigmas: Any, dtype: int) -> Any:
    """(T x 2 x N, 1, H, W), ordered by timestep, image and pair; in float32 until the end."""
    images = op.Concat(op.Unsqueeze(a, _ints(0)), op.Unsqueeze(b, _ints(0)), axis=0)  # (2, N, 1, H, W)
    over_images = _ints(-1, 1, 1, 1, 1, 1)
    signal = op.Mul(op.Reshape(levels, over_images), op.Unsqueeze(images, _ints(0)))
    noisy = op.Add(signal, op.Mul(op.Reshape(sigmas, over_images), op.Unsqueeze(noise, _ints(2, 3))))
    shape = op.Concat(_ints(-1), op.Shape(a, start=1, end=4), axis=0)
    return op.Cast(op.Reshape(noisy, shape), to=dtype)


def _translations() -> dict[Any, Any]:
    """What the exporter writes for each torch operator of `kernels`."""
    register_schemas()
    own: Any = Opset(DOMAIN, 1)

    def group_norm(
        x: Any, _xs: Any, skip: Any, _ss: Any, noise_bias: Any, weight: Any, bias: Any,
        groups: int, eps: float, silu: bool,
    ) -> Any:  # fmt: skip
        settings = {"groups": groups, "eps": eps}
        if not silu:
            assert skip is None
            assert noise_bias is None
            return own.dmfnet_group_norm(x, weight, bias, **settings)
        if skip is not None:
            assert noise_bias is None
            return own.dmfnet_group_norm_silu_joined(x, skip, weight, bias, **settings)
        if noise_bias is not None:
            return own.dmfnet_group_norm_silu_biased(x, noise_bias, weight, bias, **settings)
        return own.dmfnet_group_norm_silu(x, weight, bias, **settings)

    def gate(
        x: Any, y: Any, reduce_weight: Any, reduce_bias: Any, expand_weight: Any, expand_bias: Any,
        spatial_weight: Any, spatial_bias: Any, pixel_weight: Any, pixel_bias: Any,
    ) -> Any:  # fmt: skip
        channels = int(x.shape[1])
        # (2, 9, C): for x + y and for the attention, the taps of every channel.
        kernels = op.Reshape(op.Transpose(pixel_weight, perm=[0, 2, 1]), _ints(2, channels, 1, 9))
        own_kernel, other_kernel = (op.Squeeze(op.Slice(kernels, _ints(n), _ints(n + 1)), _ints(0)) for n in (0, 1))
        taps = _ints(channels, 1, 3, 3)
        return own.dmfnet_fusion_gate(
            x,
            y,
            op.Unsqueeze(reduce_weight, _ints(2, 3)),
            reduce_bias,
            op.Unsqueeze(expand_weight, _ints(2, 3)),
            expand_bias,
            spatial_weight,
            spatial_bias,
            op.Reshape(own_kernel, taps),
            op.Reshape(other_kernel, taps),
            op.Reshape(op.ReduceSum(other_kernel, _ints(2), keepdims=0), _ints(1, channels, 1, 1)),
            pixel_bias,
            channels=channels,
        )

    def upsample(x: Any, addend: Any, relu: bool) -> Any:
        assert relu == (addend is None)
        return own.dmfnet_upsample_relu(x) if relu else own.dmfnet_upsample_add(x, addend)

    def attention(qkv: Any) -> Any:
        return own.dmfnet_attention(qkv, scale=(int(qkv.shape[1]) // 3) ** -0.5)

    def diffuse(a: Any, b: Any, noise: Any, levels: Any, sigmas: Any, dtype: Any) -> Any:
        kind = _TYPES[dtype] if isinstance(dtype, torch.dtype) else int(dtype)
        return _diffuse(a, b, noise, levels, sigmas, kind)

    operators = torch.ops.dmfnet
    return {
        operators.convolution_epilogue.default: _epilogue,
        operators.convolution_epilogue_with_statistics.default: _epilogue_with_statistics,
        operators.group_norm_silu.default: group_norm,
        operators.fusion_gate.default: gate,
        operators.upsample_add.default: upsample,
        operators.attention.default: attention,
        operators.diffuse.default: diffuse,
    }


def to_engine_onnx(model: DMFNet, precision: FloatPrecision, sha256: str | None = None) -> Any:
    """Export for TensorRT, for any batch and any size that is a multiple of 16, at least 64.

    All passes of a pair are one batch. The precision is in the graph: feature maps and convolutions have it;
    diffusion, normalization, softmax and the last convolution are float32. ONNX gives convolutions no bfloat16 before
    opset 22, TensorRT does: a bfloat16 model is for TensorRT alone.

    Args:
        model: as trained; it stays as it is.
        precision: of the arithmetic.
        sha256: hash of the weights in the file that they come from; None computes that of `model`.

    Returns:
        An `onnx.ModelProto` as `export.onnx.graph.to_onnx` gives, with custom nodes and their functions.

    Raises:
        MissingExtraError: onnx, onnxscript or triton is not installed.
    """
    net = optimize(model, precision, kernels=True)
    assert isinstance(net, FusedPasses)
    _restore_convolutions(net, shuffle=precision == "bfloat16")
    proto = tidy(trace(net, interface_of(model.config.to_dict()), _translations()))
    proto.functions.extend(functions().values())
    return finish(proto, model, precision, sha256)


def configuration(proto: Any) -> dict[str, Any]:
    """What the metadata of an exported model says, JSON read."""
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return {key: json.loads(value) if value[:1] in "{[" else value for key, value in metadata.items()}
