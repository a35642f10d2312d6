"""The optimised network as one ONNX model."""

from __future__ import annotations

import json
from typing import Any

import onnx
import torch
from torch.export import Dim

from dmfnet_fast.model import DMFNet
from dmfnet_fast.model.optimize import optimize
from dmfnet_fast.model.weights import FORMAT, weights_hash
from dmfnet_fast.padding import STRIDE

# The newest that TensorRT 10.3 (JetPack 6) reads. GroupNormalization-21 would be one node where the exporter
# writes a few, but OpenVINO and TensorRT-RTX compile both to the same kernel.
OPSET = 20
INPUTS = ("a", "b", "noise")


def to_onnx(model: DMFNet) -> onnx.ModelProto:
    """Export for any batch and any size that is a multiple of 16, in float32.

    Args:
        model: as trained.

    Returns:
        The model, inputs `a`, `b` (N, 1, H, W) and `noise` (3, 2, H, W), output `fused` (N, 1, H, W), with its
        configuration, training record and the hash of its weights as metadata.
    """
    net = optimize(model)
    # Sizes that differ from each other and from every channel count: equal ones would be taken for the same.
    images, noise = torch.zeros(2, 1, 80, 112), torch.zeros(3, 2, 80, 112)
    height, width = (STRIDE * Dim(name, min=4, max=256) for name in ("rows", "columns"))
    shape = {0: Dim("batch", min=1, max=1024), 2: height, 3: width}
    program = torch.onnx.export(
        net,
        (images, images.clone(), noise),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(INPUTS),
        output_names=["fused"],
        dynamic_shapes={"a": shape, "b": shape, "noise": {2: height, 3: width}},
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "kind": "fusion",
        "config": json.dumps(model.config.to_dict()),
        "training": json.dumps(model.record),
        "sha256": weights_hash(model.state_dict()),
    }
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value)
    return proto
