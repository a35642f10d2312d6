"""Engines of TensorRT-RTX, which builds for GPUs that are not there; and the tools that all builds share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.artifacts.onnx_metadata import has_functions
from dmfnet_fast.engines import shipped
from dmfnet_fast.engines.tensorrt_log import Log, logger
from dmfnet_fast.errors import DMFNetError, DMFNetWarning, EngineError, OutOfMemoryError
from dmfnet_fast.model import DMFNet, StudentConfig
from dmfnet_fast.model.rewrites import of_kind
from dmfnet_fast.precision import FloatPrecision
from export.onnx.graph import to_onnx
from export.onnx.pixels import with_pixels
from export.request import shipped_graph
from export.tensorrt.builder import Built, Profile, _check, build, capability, known_gpus
from export.tensorrt.engine_file import prepare
from export.tensorrt.engine_graph import to_engine_onnx
from export.tensorrt.layers import Layer, check_precision, layers_of_inspector, layers_of_log, summary
from export.verify import on_onnx_runtime, pairs_to_check, references, widened
from tests.synthetic_weights import GOLDEN, SMALL, golden_model, model_by_rule

TURBO = shipped()["turbo"]
SHIPPED_GRAPH = shipped_graph(TURBO)

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is for x86-64 Linux and Windows")

FIXED = Profile((1, 256, 256), (1, 256, 256), (1, 256, 256))
RANGE = Profile((1, 128, 128), (2, 256, 256), (4, 512, 640))
# Of TensorRT-RTX 1.7 on this graph: 332, of which seven only rearrange or convert (the qkv of the attention, its norm's
# input, and the pixels' mean of each fusion gate). A layer more for each of the 51 normalizations, say, is a slower
# engine.
MOST_LAYERS = 340
MOST_REFORMATS = 8
MOST_LAYERS_OF_STUDENT = 20


def _build(content: bytes, profile: Profile, gpus: list[str]) -> Built:
    parts: list[float] = []
    built = build(content, "tensorrt-rtx", profile, gpus, None, None, parts.append)
    assert parts == sorted(parts)
    assert 0 < parts[-1] <= 1
    return built


@pytest.fixture(scope="module")
def base_graph() -> bytes:
    return bytes(to_engine_onnx(golden_model(), "float16").SerializeToString())


def test_tiny_fixed() -> None:
    built = _build(SHIPPED_GRAPH.read_bytes(), FIXED, ["sm_89"])
    told = summary(built.layers)
    assert 300 < told["count"] <= MOST_LAYERS
    assert told["reformats"] <= MOST_REFORMATS
    assert told["count"] == sum(told["kinds"].values()) == len(told["list"])
    check_precision(built.layers, "float16")
    with pytest.warns(DMFNetWarning, match=r"are not reported as float32 "):
        check_precision(built.layers, "float32")
    json.dumps(told, allow_nan=False)


def test_tiny_range() -> None:
    built = _build(SHIPPED_GRAPH.read_bytes(), RANGE, ["sm_86", "sm_89", "sm_120"])
    # Shapes that are not known cost some 25 layers more.
    assert 300 < len(built.layers) <= MOST_LAYERS + 30
    check_precision(built.layers, "float16")


def test_several_gpus() -> None:
    content = shipped_graph(shipped()["nano"]).read_bytes()
    found = [_build(content, RANGE, gpus) for gpus in (["sm_86"], ["sm_89"], ["sm_86", "sm_89", "sm_120"])]
    assert len({built.engine[:64] for built in found}) == 3, "the header says what it is for"


def test_base(base_graph: bytes) -> None:
    built = _build(base_graph, RANGE, ["sm_80", "sm_120"])
    check_precision(built.layers, "float16")
    assert len(built.layers) <= MOST_LAYERS + 30
    assert summary(built.layers)["reformats"] <= MOST_REFORMATS


def test_float32() -> None:
    """From the file for CPUs."""
    built = _build(TURBO.with_suffix(".onnx").read_bytes(), FIXED, ["sm_86"])
    check_precision(built.layers, "float32")


@pytest.mark.parametrize("file", ["golden_64", "golden_64x96"])
def test_golden(base_graph: bytes, file: str) -> None:
    """The graph for engines on the published network's own outputs."""
    with np.load(GOLDEN / f"{file}.npz") as golden:
        a, b, noise, fused = (golden[name] for name in ("a", "b", "noise", "fused"))
    session = onnxruntime.InferenceSession(base_graph, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"a": a[None, None], "b": b[None, None], "noise": noise})
    assert np.abs(result[0, 0] - fused).max() <= 2e-3  # float16


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_student(precision: FloatPrecision) -> None:
    """The graph that CPUs run too: sums and ReLUs are parts of the convolutions."""
    config = StudentConfig(channels=32, blocks=2)
    proto = to_onnx(model_by_rule(config), precision)
    assert [value.name for value in proto.graph.input] == ["a", "b", "interval"]
    for profile in (FIXED, RANGE):
        built = _build(proto.SerializeToString(), profile, ["sm_89"])
        check_precision(built.layers, precision)
        assert sum(layer.multiplies for layer in built.layers) == 2 + 2 * config.blocks
        assert len(built.layers) <= MOST_LAYERS_OF_STUDENT


@pytest.mark.parametrize("profile", [FIXED, RANGE], ids=["fixed", "range"])
def test_pixels(profile: Profile) -> None:
    """Conversions and rules are parts of layers that are there anyway, but for one."""
    content = shipped_graph(shipped()["nano"]).read_bytes()
    proto = with_pixels(onnx.ModelProto.FromString(content), Interface(timesteps=0, interval=True))
    plain, pixels = (_build(graph, profile, ["sm_89"]) for graph in (content, proto.SerializeToString()))
    check_precision(pixels.layers, "float16")
    assert len(plain.layers) <= len(pixels.layers) <= len(plain.layers) + 1
    assert summary(pixels.layers)["reformats"] == summary(plain.layers)["reformats"]


@pytest.fixture(scope="module")
def without_noise() -> DMFNet:
    return of_kind(model_by_rule(SMALL["no noise"]), DMFNet)


@pytest.fixture(scope="module")
def with_functions(without_noise: DMFNet) -> bytes:
    return bytes(to_engine_onnx(without_noise, "bfloat16", with_functions=True).SerializeToString())


def test_a_graph_with_functions_is_refused(with_functions: bytes) -> None:
    """As TensorRT 10.3 misreads them."""
    assert has_functions(with_functions)
    with pytest.raises(EngineError, match=r"the graph has functions, which TensorRT 10\.3 misreads"):
        _build(with_functions, FIXED, ["sm_89"])


def test_bfloat16_without_noise_and_plugins(
    without_noise: DMFNet, with_functions: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first convolution reads the images, and the interval has its own convolution at the end.

    For a TensorRT that takes no plugins, the functions that they would replace become standard operators.
    """
    told: list[str] = []
    request: Any = SimpleNamespace(plugins=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0", Builder=None))
        prepared = prepare(request, with_functions, told.append)
    assert told == ["TensorRT 10.3.0 takes no plugins of ours (10.9 and later do): built without them"]
    assert prepared.plugins == ()
    assert not has_functions(prepared.content)
    proto = onnx.ModelProto.FromString(prepared.content)
    graph = proto.graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in kinds
    assert onnx.TensorProto.FLOAT16 not in kinds
    assert [value.name for value in graph.input] == ["a", "b", "interval"]
    first = next(node for node in graph.node if node.op_type == "Conv")
    made_by = {output: node for node in graph.node for output in node.output}
    cast = made_by[first.input[0]]
    assert [cast.op_type, made_by[cast.input[0]].op_type] == ["Cast", "Concat"]
    assert set(made_by[cast.input[0]].input) == {"a", "b"}
    wanted, _ = references(without_noise, pairs_to_check([(2, 64, 96)]))
    assert on_onnx_runtime(widened(proto).SerializeToString(), "bfloat16", wanted).within
    check_precision(_build(prepared.content, RANGE, ["sm_89"]).layers, "bfloat16")


def test_what_cannot_be_read_or_built() -> None:
    with pytest.raises(EngineError, match=r"tensorrt_rtx .* cannot read the ONNX model"):
        _build(b"no model", FIXED, ["sm_89"])
    # A size that the up path does not come back to.
    with pytest.raises(EngineError, match=r"tensorrt_rtx .* cannot build"):
        _build(SHIPPED_GRAPH.read_bytes(), Profile(*[(1, 72, 72)] * 3), ["sm_89"])


def test_gpus() -> None:
    assert known_gpus()[0] == "sm_75"
    assert "sm_120" in known_gpus()
    assert [capability(name) for name in ("sm_86", "sm_120")] == ["8.6", "12.0"]


def test_errors_of_the_builder() -> None:
    library: Any = SimpleNamespace(
        ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0, "WARNING": 2, "INFO": 3})
    )
    log, others = Log(), list[str]()
    messages = logger(library, log, others.append)
    messages.log(1, "[alloc] Out of memory (In run at file.cpp:1)")
    with pytest.raises(OutOfMemoryError, match="use a smaller --max"):
        _check(None, "TensorRT cannot build", log)
    for severity, message in ((1, "first"), (3, "listed"), (2, "not enough memory"), (1, "no tactic In do at b.cpp:1")):
        messages.log(severity, message)
    with pytest.raises(
        EngineError, match=r"^TensorRT cannot build: no tactic \(its last warnings: not enough memory\)$"
    ):
        _check(None, "TensorRT cannot build", log)
    with pytest.raises(DMFNetError, match=r"^x: it does not say why$"):
        _check(None, "x", log)
    assert others == ["listed"]


LOG = (
    "Name: __myl_CastSiluGnor_myl0_4, LayerType: kgen, Inputs: [ { Name: i, Dimensions: [96], Datatype: Int32, Format: "
    "(Linear) }, { Name: x, Datatype: Half, Format: (NHWC) }], Constants: [ { Name: c, Datatype: Float }], Outputs: "
    "[ { Name: y, Datatype: Float }], TacticName: t, StreamId: 0"
)


def test_layers_of_a_log() -> None:
    (layer,) = layers_of_log(["no layer", LOG])
    assert layer == Layer("__myl_CastSiluGnor_myl0_4", "kgen", "float16", False)
    assert not layer.multiplies
    (moved,) = layers_of_log([LOG.replace("CastSiluGnor", "TranResh")])
    assert moved.reformat


def test_layers_of_the_inspector() -> None:
    """As TensorRT's engine inspector writes them, of two releases."""

    def tensor(**kind: str) -> dict[str, Any]:
        return {"Name": "t", "Dimensions": [1, 2], **kind}

    half = tensor(**{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"})
    layers = [
        {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [tensor(Datatype="Half")], "Outputs": [half]},
        {"Name": "old", "LayerType": "CaskGemm", "Inputs": [half], "Outputs": []},
        *(
            {"Name": f"Reformatting CopyNode for Input Tensor {n} to node_conv2d_1", "LayerType": "Reformat",
             "Inputs": [tensor(Datatype="Float")], "Outputs": [half]}
            for n in range(2)
        ),
        {"Name": "node_convolution_epilogue", "LayerType": "PointWiseV2", "Inputs": [tensor(Datatype="Float")]},
    ]  # fmt: skip
    found = layers_of_inspector(json.dumps({"Layers": layers, "Bindings": []}))
    assert [(layer.precision, layer.reformat) for layer in found] == [
        ("float16", False),
        ("float16", False),
        ("float32", True),
        ("float32", True),
        ("float32", False),
    ]
    check_precision(found, "float16")
    # Without detailed verbosity, names alone.
    assert layers_of_inspector(json.dumps({"Layers": ["conv"]})) == []


def test_precision_is_checked() -> None:
    def convolutions(*precisions: str) -> list[Layer]:
        return [Layer(f"conv{n}", "correlation", precision, False) for n, precision in enumerate(precisions)]

    check_precision(convolutions("float16", "float32"), "float16")  # the last one is float32 by design
    check_precision(convolutions("float32", "float32"), "float32")
    with pytest.warns(DMFNetWarning, match=r"2 of 3 .* not reported as float16 .conv1: float32"):
        check_precision(convolutions("float16", "float32", "float32"), "float16")
    with pytest.warns(DMFNetWarning, match="conv0: bfloat16"):
        check_precision(convolutions("bfloat16"), "float16")
    with pytest.warns(DMFNetWarning, match="conv0: no type"):
        check_precision(convolutions(""), "float16")
    with pytest.warns(DMFNetWarning, match="reports no convolutions"):
        check_precision([Layer("a", "kgen", "float16", False)], "float16")


def test_upsampling_of_bfloat16_is_the_same() -> None:
    """The shuffled convolution against the transposed one that it replaces."""
    from export.tensorrt.engine_graph import ShuffledUpsample

    torch.manual_seed(0)
    conv = torch.nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1, bias=False)
    x = torch.randn(2, 3, 7, 4)
    torch.testing.assert_close(ShuffledUpsample(conv)(x), conv(x), atol=1e-6, rtol=1e-5)


def test_shipped_graph_is_the_shipped_weights() -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(SHIPPED_GRAPH).metadata_props}
    weights = {e.key: e.value for e in onnx.load(TURBO.with_suffix(".onnx")).metadata_props}
    assert metadata["sha256"] == weights["sha256"]
    assert metadata["precision"] == "float16"


def test_there_is_no_driver_for_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where TensorRT is installed without one, its builder raises."""
    import tensorrt_rtx

    class NoBuilder:
        def __init__(self, *_: Any) -> None:
            raise TypeError("factory function returned nullptr")

    fake = type(sys)("tensorrt")
    fake.__dict__.update({**vars(tensorrt_rtx), "Builder": NoBuilder, "__version__": "10.13.0"})
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    with pytest.raises(EngineError, match=r"tensorrt 10.13.0 cannot start: .*nullptr.*check the driver, or use"):
        build(b"", "tensorrt", FIXED, [], tmp_path / "timings", None, lambda _: None)
    assert not list(tmp_path.iterdir())
