"""The optimized network as one ONNX model."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
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

import onnx_ir  # noqa: E402
import torch  # noqa: E402
from onnx_ir.passes import common as passes  # noqa: E402
from onnxscript import opset20  # noqa: E402
from onnxscript.optimizer import fold_constants  # noqa: E402
from torch.export import Dim  # noqa: E402

# The newest that TensorRT 10.3 (JetPack 6) reads; nothing here needs a newer one, as GroupNorm is written out.
OPSET = 20
op: Any = opset20  # its annotations forbid what it accepts


def _group_norm(x: Any, num_groups: int, weight: Any, bias: Any, eps: float = 1e-5, _cudnn: bool = True) -> Any:
    """GroupNorm from the means of channels, which leaves a channels-last tensor as it is.

    ONNX's own way, and that of engines which know no GroupNorm, reshapes to (N, groups, -1), for which OpenVINO
    reorders the whole tensor twice: a third of its time. But the mean of a group is the mean of its channels' means,
    and to average those is a 1x1 convolution of one pixel. Two passes, as E[x^2] - E[x]^2 would lose too much.
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
    """The module as an ONNX model in onnx_ir, as the exporter writes it, of any batch and size.

    Args:
        net: takes its inputs by their names.
        interface: says which those are.
        translations: for torch operators, functions that write them in ONNX.
    """
    # Sizes that differ from each other and from every channel count: equal ones would be taken for the same.
    inputs = {name: torch.zeros(shape) for name, shape in interface.shapes(2, 80, 112).items()}
    size = dict(zip((2, 3), (STRIDE * Dim(name, min=4, max=1024) for name in ("rows", "columns")), strict=True))
    batch = {0: Dim("batch", min=1, max=4096), **size}
    with warnings.catch_warnings():
        # Of the exporter about itself: how it names axes, what it will deprecate.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            net,
            kwargs=inputs,
            dynamo=True,
            # Its rewriting takes twice as long as all the rest; engines do that anyway, and `_tidy` what is needed.
            optimize=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[OUTPUT],
            dynamic_shapes={name: size if name == "noise" else batch for name in inputs},
            custom_translation_table=dict(translations),
            verbose=False,
        )
    assert program is not None
    return program.model


def tidy(model: Any) -> Any:
    """Constants folded and kept once; nothing in the file of how it was traced."""
    # The limits keep repetitions of large tensors out of the file; what is folded here are rearranged weights.
    fold_constants(model, input_size_limit=2**20, output_size_limit=2**20)
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
    proto.graph.ClearField("value_info")  # the shapes of all 6000 results, which readers infer
    return proto


def add_metadata(proto: Any, metadata: Mapping[str, str]) -> None:
    """Add properties to a model's metadata."""
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value)


def _student_graph(model: Student, precision: FloatPrecision) -> Any:
    """A student's graph, for CPUs and for engines alike."""
    net = optimize(model, precision)
    assert isinstance(net, Student)
    # ONNX has PyTorch's unshuffling in one operator, but for the order of the channels: rows and columns of a block
    # first, then the inputs. The first convolution takes them in that order; the graph alone is right then, not `net`.
    first, samples = net.first, net.config.factor**2
    by_sample = first.weight.unflatten(1, (-1, samples)).transpose(1, 2).flatten(1, 2).contiguous()
    first.weight = torch.nn.Parameter(by_sample, requires_grad=False)

    def unshuffle(x: Any, downscale_factor: int) -> Any:
        return op.SpaceToDepth(x, blocksize=downscale_factor)

    return tidy(trace(net, interface_of(model.config.to_dict()), {torch.ops.aten.pixel_unshuffle.default: unshuffle}))


def plain_graph(model: Network, precision: FloatPrecision = "float32") -> Any:
    """What `to_onnx` gives, without metadata."""
    if isinstance(model, Student):
        return _student_graph(model, precision)
    assert precision == "float32", "others are for engines, whose graphs have nodes of our own"
    # Both images in a batch: half as many operations, so that engines open in half the time, and as fast on a CPU.
    net = optimize(model, together=True)
    return tidy(trace(net, interface_of(model.config.to_dict()), {torch.ops.aten.group_norm.default: _group_norm}))


def to_onnx(model: Network, precision: FloatPrecision = "float32", sha256: str | None = None) -> Any:
    """Export for any batch and any size that is a multiple of 16, at least 64, in ONNX's own operators.

    Args:
        model: as trained; it stays as it is.
        precision: of the arithmetic. DM-FNet's graph is float32, for CPUs; `export.tensorrt.engine_graph` makes the
            one for engines. A student's graph serves both, in any precision, of which CPUs take float32.
        sha256: hash of the weights in the file that they come from; None computes that of `model`.

    Returns:
        An `onnx.ModelProto` with inputs as `dmfnet_fast.artifacts.interface.Interface` says, the output `fused`
        (N, 1, H, W), and its configuration, training record and weights' hash as metadata.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    return finish(plain_graph(model, precision), model, precision, sha256)


def finish(proto: Any, model: Network, precision: str, sha256: str | None) -> Any:
    """Check a graph and say in its metadata what it is: see `to_onnx`."""
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
