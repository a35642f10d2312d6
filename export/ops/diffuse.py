"""The diffusion as plain ONNX nodes, as it is computed independently for every pixel."""

from __future__ import annotations

from typing import Any

import torch

from dmfnet_fast.errors import require
from export.ops.record import Record
from export.ops.shared import ints, op

onnx = require("onnx", extra="export")

_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
}


def _translate(a: Any, b: Any, noise: Any, levels: Any, sigmas: Any, dtype: Any) -> Any:
    """Noisy images (T x 2 x N, 1, H, W), ordered by timestep, image and pair; float32 until the final cast."""
    images = op.Concat(op.Unsqueeze(a, ints(0)), op.Unsqueeze(b, ints(0)), axis=0)  # (2, N, 1, H, W)
    over_images = ints(-1, 1, 1, 1, 1, 1)
    signal = op.Mul(op.Reshape(levels, over_images), op.Unsqueeze(images, ints(0)))
    noisy = op.Add(signal, op.Mul(op.Reshape(sigmas, over_images), op.Unsqueeze(noise, ints(2, 3))))
    shape = op.Concat(ints(-1), op.Shape(a, start=1, end=4), axis=0)
    return op.Cast(op.Reshape(noisy, shape), to=_TYPES[dtype] if isinstance(dtype, torch.dtype) else int(dtype))


RECORD = Record(translations={"diffuse": _translate})
