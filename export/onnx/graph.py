"""The optimized network as an ONNX model in standard operators."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dmfnet_fast import __version__
from dmfnet_fast.artifacts.interface import OUTPUT, Interface, interface_of
from dmfnet_fast.artifacts.onnx_metadata import FORMAT, KIND
from dmfnet_fast.errors import require
from dmfnet_fast.images.padding import STRIDE
from dmfnet_fast.model import Network, Student, optimize
from dmfnet_fast.model.weights import weights_hash
from dmfnet_fast.precision import FloatPrecision

onnx = require("onnx", extra="export")
require("onnxscript", extra="export")

import onnx_ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import opset20
from onnxscript.optimizer import fold_constants
from torch.export import Dim

# The newest that TensorRT 10.3 (JetPack 6) reads. No newer one is needed, as GroupNorm is written in simpler operators.
OPSET = 20
# Batch, height and width of what is traced. The sizes differ from each other and from every channel count: the exporter
# could identify equal ones.
TRACED = (2, 80, 112)
op: Any = opset20  # typed Any because the annotations are stricter than the implementation


def _group_norm(x: Any, num_groups: int, weight: Any, bias: Any, eps: float = 1e-5, _cudnn: bool = True) -> Any:
    """GroupNorm from the means of the channels, which keeps a tensor in its channels-last layout.

    ONNX's definition, and engines without a GroupNorm, reshape to (N, groups, -1). For that, OpenVINO reorders the
    whole tensor twice, which takes a third of its time. The mean of a group is also the mean of its channels' means,
    and averaging those is a 1x1 convolution of a single pixel. The variance takes a second pass over the centered
    values, as E[x^2] - E[x]^2 would lose too much precision.
    """
    channels = int(x.shape[1])
    group = np.arange(channels) * num_groups // channels
    weights = (group[:, None] == group).astype(np.float32) * (num_groups / channels)
    average = op.Constant(value=onnx.numpy_helper.from_array(weights[:, :, None, None]))
    axes, per_channel = op.Constant(value_ints=[2, 3]), op.Constant(value_ints=[channels, 1, 1])
    centered = op.Sub(x, op.Conv(op.ReduceMean(x, axes, keepdims=1), average))
    variance = op.Conv(op.ReduceMean(op.Mul(centered, centered), axes, keepdims=1), average)
    deviation = op.Sqrt(op.Add(variance, op.Constant(value_float=eps)))
    return op.Add(op.Mul(centered, op.Div(op.Reshape(weight, per_channel), deviation)), op.Reshape(bias, per_channel))


def trace(net: torch.nn.Module, interface: Interface, translations: Mapping[Any, Any]) -> Any:
    """Export a network to an onnx_ir model with dynamic batch, height and width, without optimizing the graph.

    Args:
        net: module whose forward takes its inputs as keyword arguments.
        interface: names and shapes of these inputs.
        translations: functions that write torch operators in ONNX, by operator.
    """
    inputs = {name: torch.zeros(shape) for name, shape in interface.shapes(*TRACED).items()}
    axes = {name: (2, 3) if name == "noise" else (0, 2, 3) for name in inputs}
    return trace_module(net, inputs, axes, (OUTPUT,), translations)


def trace_module(
    net: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    axes: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    translations: Mapping[Any, Any],
) -> Any:
    """Export any module likewise.

    Args:
        net: module whose forward takes its inputs as keyword arguments.
        inputs: tensors of the shape TRACED, by name.
        axes: the axes of batch, height and width of each input; two if it has no batch, none if its shape is fixed.
        outputs: names of the outputs.
        translations: functions that write torch operators in ONNX, by operator.
    """
    dimensions = Dim("batch", min=1, max=4096), *(STRIDE * Dim(name, min=4, max=1024) for name in ("rows", "columns"))
    with warnings.catch_warnings():
        # The exporter warns about its own naming of axes and future deprecations.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            net,
            kwargs=dict(inputs),
            dynamo=True,
            # Optimization takes twice as long as all the rest. Engines do it anyway, and `tidy` does what is needed.
            optimize=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes={
                name: dict(zip(axes[name], dimensions[len(dimensions) - len(axes[name]) :], strict=True))
                for name in inputs
            },
            custom_translation_table=dict(translations),
            verbose=False,
        )
    assert program is not None
    return program.model


def tidy(model: Any) -> Any:
    """Fold and deduplicate constants, and remove everything that only documents the tracing.

    Args:
        model: an onnx_ir model.

    Returns:
        An `onnx.ModelProto`.
    """
    # Folding is meant for rearranged weights; the limits keep copies of large tensors out of the file.
    # By default, tensors of one repeated value are left out; engines should find the ones and zeros of norms as such.
    fold_constants(
        model,
        input_size_limit=2**20,
        output_size_limit=2**20,
        should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
    )
    sequence = onnx_ir.passes.Sequential(
        passes.LiftConstantsToInitializersPass(lift_all_constants=True),
        passes.CommonSubexpressionEliminationPass(),
        passes.DeduplicateInitializersPass(size_limit=2**31),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
    )
    model = sequence(model).model
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    proto = onnx_ir.to_proto(model)
    proto.graph.ClearField("value_info")  # shapes of all 6000 intermediate results; readers infer them
    return proto


def add_metadata(proto: Any, metadata: Mapping[str, str]) -> None:
    """Add properties to a model's metadata."""
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value)


def _student_graph(model: Student, precision: FloatPrecision) -> Any:
    """A student's graph, which serves both CPUs and engines."""
    net = optimize(model, precision)
    assert isinstance(net, Student)
    # SpaceToDepth is PyTorch's pixel_unshuffle with another order of channels: the position in a block varies slowest,
    # the input channel fastest. The weights of the first convolution are permuted to match. From here on only the
    # exported graph is correct; running `net` in PyTorch is not.
    first, samples = net.first, net.config.factor**2
    by_sample = first.weight.unflatten(1, (-1, samples)).transpose(1, 2).flatten(1, 2).contiguous()
    first.weight = torch.nn.Parameter(by_sample, requires_grad=False)

    def unshuffle(x: Any, downscale_factor: int) -> Any:
        return op.SpaceToDepth(x, blocksize=downscale_factor)

    return tidy(trace(net, interface_of(model.config.to_dict()), {torch.ops.aten.pixel_unshuffle.default: unshuffle}))


def plain_graph(model: Network, precision: FloatPrecision = "float32") -> Any:
    """The graph of `to_onnx` without metadata."""
    if isinstance(model, Student):
        return _student_graph(model, precision)
    assert precision == "float32", "others are for engines, whose graphs have nodes of our own"
    # Batching both images of a pair halves the number of operations: engines open in half the time and run as fast on a
    # CPU.
    net = optimize(model, together=True)
    return tidy(trace(net, interface_of(model.config.to_dict()), {torch.ops.aten.group_norm.default: _group_norm}))


def to_onnx(model: Network, precision: FloatPrecision = "float32", sha256: str | None = None) -> Any:
    """Export a network in standard ONNX operators, for any batch and any size that is a multiple of 16, at least 64.

    Args:
        model: the network as trained; it is not modified.
        precision: precision of the arithmetic. For DM-FNet, it must be float32: this graph is for CPUs, and
            `export.tensorrt.engine_graph` makes the one for engines. A student's graph serves both in any precision;
            CPUs run the float32 one.
        sha256: hash of the weights as recorded in their file; None computes it from `model`.

    Returns:
        An `onnx.ModelProto` with the inputs of `dmfnet_fast.artifacts.interface.Interface`, the output `fused`
        (N, 1, H, W), and the configuration, training record and hash of the weights as metadata.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    return finish(plain_graph(model, precision), model, precision, sha256)


def finish(proto: Any, model: Network, precision: str, sha256: str | None) -> Any:
    """Add the metadata that `to_onnx` documents to a graph, check it and return it."""
    proto.producer_name, proto.producer_version = "dmfnet-fast", __version__
    metadata = {
        "format": FORMAT,
        "kind": KIND,
        "precision": precision,
        "config": json.dumps(model.config.to_dict()),
        "training": json.dumps(model.record),
        "sha256": sha256 or weights_hash(model.state_dict()),
    }
    add_metadata(proto, metadata)
    onnx.checker.check_model(proto)
    return proto
