"""`dmfnet-export`: one export of a network with weights made by rule, seen from all sides."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.artifacts.onnx_metadata import properties, seal
from dmfnet_fast.artifacts.parity import LIMITS, Reference, check
from dmfnet_fast.engines import DEFAULT, shipped
from dmfnet_fast.errors import EngineError
from dmfnet_fast.model import StudentConfig, load_model, preset, save_model
from dmfnet_fast.model.weights import read_metadata
from dmfnet_fast.phantom import Phantom
from dmfnet_fast.precision import FloatPrecision
from export import command
from export.command import main
from export.emulation import ACCUMULATIONS
from export.onnx.graph import OPSET, to_onnx
from export.onnx.source import NOTHING_WRITTEN, from_content, from_weights
from export.request import shipped_graph
from export.verify import STANDARD_SHAPES, on_onnx_runtime, on_openvino, pairs_to_check, references, widened
from tests.synthetic_weights import GOLDEN, SMALL, model_by_rule

TURBO = shipped()["turbo"]
SHIPPED_GRAPH = shipped_graph(TURBO)


@pytest.fixture(scope="module")
def exported(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "base.onnx"
    with pytest.MonkeyPatch.context() as patch:
        # Base takes seconds for a pair of 64x64: other networks are checked with all.
        patch.setattr("export.onnx.source.pairs_to_check", lambda _: pairs_to_check([(1, 64, 64)])[:1])
        result = CliRunner().invoke(main, [str(converted), "--target", "onnx", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}\n"
    assert "exporting" in result.stderr
    assert "ONNX Runtime, float32, 64x64: max abs error" in result.stderr
    assert [file.name for file in path.parent.iterdir()] == ["base.onnx"]
    return path


def test_file(exported: Path, converted: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not model.functions
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["sha256"] == read_metadata(converted)["sha256"]
    assert json.loads(metadata["config"])["channels"] == 128
    parity = json.loads(metadata["parity"])
    assert {(entry["engine"], entry["precision"]) for entry in parity} >= {
        ("ONNX Runtime", "float32"),
        ("OpenVINO", "float32"),
    }
    assert all(entry["max_abs"] <= LIMITS[entry["precision"]].max_abs for entry in parity)
    # Nothing of how and where it was made.
    model.graph.ClearField("initializer")
    text = model.SerializeToString()
    assert str(Path(command.__file__).parent).encode() not in text
    assert b"pkg.torch" not in text
    assert b"site-packages" not in text


@pytest.mark.parametrize("file", ["golden_64", "golden_64x96"])
def test_golden(exported: Path, file: str) -> None:
    with np.load(GOLDEN / f"{file}.npz") as golden:
        a, b, noise, fused = (golden[name] for name in ("a", "b", "noise", "fused"))
    with Fuser(exported, precision="float32") as fuser:
        result = fuser.run(a[None, None], b[None, None], noise=noise)
    assert np.abs(result[0, 0] - fused).max() <= 2e-5


def test_without_noise(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom: Phantom) -> None:
    """No noise input; the check's intervals are remade from its images, and are those of the network as trained.

    test_int8.py has the same of a DM-FNet.
    """
    monkeypatch.setattr("export.onnx.source.STANDARD_SHAPES", ((2, 64, 96),))
    small, path = tmp_path / "small.safetensors", tmp_path / "small.onnx"
    save_model(model_by_rule(SMALL["student"]), small)
    result = cli.invoke(main, [str(small), "--target", "onnx", "-o", str(path)])
    assert result.exit_code == 0, result.output
    content = path.read_bytes()
    assert [value.name for value in onnx.load(path).graph.input] == ["a", "b", "interval"]
    graph = from_content(content, "small")
    assert graph.config == json.loads(read_metadata(small)["config"])
    assert {parity.engine for parity in graph.parity} == {"ONNX Runtime", "OpenVINO"}
    expected, _ = references(load_model(small), pairs_to_check([(2, 64, 96)]))
    for ours, theirs in zip(expected, graph.references, strict=True):
        assert theirs.interface == Interface(timesteps=0, interval=True)
        assert np.abs(ours.fused - theirs.fused).max() <= 2e-5
        for name, array in ours.inputs.items():
            np.testing.assert_array_equal(theirs.inputs[name], array)
    assert on_onnx_runtime(content, "float32", expected).within
    images = []
    for file in (path, small):
        with Fuser(file, precision="float32") as fuser:
            images.append(fuser.fuse(phantom.mri, phantom.pet).astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_students_graphs_for_engines(precision: FloatPrecision) -> None:
    """The same operators as for CPUs, in another precision."""
    model = model_by_rule(SMALL["student"])
    proto = to_onnx(model, precision)
    kinds = {node.op_type for node in proto.graph.node}
    operators = {"Concat", "Cast", "SpaceToDepth", "Conv", "Relu", "Add", "DepthToSpace", "Split", "Max", "Min"}
    assert kinds == operators
    assert not proto.functions
    wanted, _ = references(model, pairs_to_check([(2, 64, 96)]))
    checked = widened(proto) if precision == "bfloat16" else proto
    assert on_onnx_runtime(checked.SerializeToString(), precision, wanted).within


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_unshuffling(factor: int) -> None:
    """Of every factor as PyTorch's, though ONNX orders its channels otherwise."""
    model = model_by_rule(StudentConfig(channels=8, blocks=1, factor=factor))
    wanted, _ = references(model, pairs_to_check([(1, 64, 96)]))
    assert on_onnx_runtime(to_onnx(model).SerializeToString(), "float32", wanted).within


@pytest.fixture(scope="module")
def wanted() -> list[Reference]:
    return references(load_model(TURBO), pairs_to_check([(2, 64, 96)]))[0]


@pytest.fixture(scope="module", params=["nano", "turbo"])
def weights(request: pytest.FixtureRequest) -> Path:
    """Each network that ships with its graphs."""
    return shipped()[request.param]


@pytest.fixture(scope="module")
def expected(weights: Path) -> list[Reference]:
    return references(load_model(weights), pairs_to_check([(2, 64, 96)]))[0]


def test_shipped_file_is_the_shipped_weights(weights: Path, expected: list[Reference]) -> None:
    content = weights.with_suffix(".onnx").read_bytes()
    graph = from_content(content, "shipped")
    assert graph.weights == read_metadata(weights)["sha256"]
    parities = on_openvino(content, expected)
    assert {parity.precision for parity in parities} >= {"float32"}
    for parity in (*parities, *graph.parity):
        check(parity, "no")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_shipped_references(weights: Path, precision: str, expected: list[Reference]) -> None:
    """What a machine without torch compares with is what the weights make."""
    file = weights.with_suffix(".onnx") if precision == "float32" else shipped_graph(weights)
    graph = from_content(file.read_bytes(), file.name)
    assert graph.precision == precision
    assert graph.weights == read_metadata(weights)["sha256"]
    emulated = {f"emulated GPU, {accumulation} sums" for accumulation in ACCUMULATIONS}
    checked = {"ONNX Runtime"} | (emulated if precision == "float16" else {"OpenVINO"})
    assert {parity.engine for parity in graph.parity} == checked
    assert not onnx.load_from_string(graph.content).functions
    assert [reference.shape for reference in graph.references] == [*STANDARD_SHAPES, (5, 64, 96)]
    for ours, theirs in zip(expected, (graph.references[0], graph.references[-1]), strict=True):
        np.testing.assert_array_equal(ours.a, theirs.a)
        np.testing.assert_array_equal(ours.b, theirs.b)
        assert np.abs(ours.fused - theirs.fused).max() <= 2e-5
    assert on_onnx_runtime(file.read_bytes(), graph.precision, expected).within


def test_a_wrong_network_fails(wanted: list[Reference]) -> None:
    model = onnx.load(SHIPPED_GRAPH)
    (last,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith("rgb_decode1.conv.weight")]
    values = onnx.numpy_helper.to_array(last)
    last.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.1), last.name))
    parity = on_onnx_runtime(model.SerializeToString(), "float16", wanted)
    assert not parity.within
    with pytest.raises(
        EngineError, match=r"differs from the weights: .*limit 0\.05.*limit 0\.016.*nothing was written"
    ):
        check(parity, NOTHING_WRITTEN)


def test_onnx_runtime_that_cannot(monkeypatch: pytest.MonkeyPatch, wanted: list[Reference]) -> None:
    def too_old(*_: Any, **__: Any) -> None:
        raise ValueError("opset 20 is not supported")

    monkeypatch.setattr("onnxruntime.InferenceSession", too_old)
    with pytest.raises(EngineError, match=r"opset 20 is not supported; upgrade onnxruntime$"):
        on_onnx_runtime(SHIPPED_GRAPH.read_bytes(), "float16", wanted)


def test_inputs_to_check() -> None:
    """Heads at every shape; black, gray, full contrast and saturation at the first's size."""
    pairs = pairs_to_check([(2, 64, 96), (1, 80, 80)], most_pairs=2)
    assert [a.shape for a, _ in pairs] == [(2, 64, 96), (1, 80, 80), (2, 64, 96), (2, 64, 96), (1, 64, 96)]
    extremes = np.concatenate([a for a, _ in pairs[2:]])
    assert [int(np.ptp(image)) for image in extremes] == [0, 0, 255, 255, 255]
    assert (extremes[-1] == 255).mean() > 0.1


def test_largest_activation() -> None:
    """In the units of the tensors between operators."""

    class Doubling(torch.nn.Module):
        config = preset("tiny")

        def forward(self, a: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
            return (-3000 * (a.abs() + 1)) / 6000

    _, largest = references(Doubling(), [(np.full((1, 64, 64), 255, np.uint8),) * 2])
    assert largest == pytest.approx(6000)


def test_too_large_for_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.onnx.source.references", lambda *_: ([], 65504 / 4 + 1))
    monkeypatch.setattr("export.onnx.source._to_onnx", lambda *_: None)
    with pytest.raises(EngineError, match=r"values reach 16377, float16 holds up to 65504, .*: use --bf16"):
        from_weights(TURBO, "float16", True, None, lambda _: nullcontext(lambda _: None))


def test_properties_without_onnx() -> None:
    content = SHIPPED_GRAPH.read_bytes()
    assert properties(content) == {entry.key: entry.value for entry in onnx.load(SHIPPED_GRAPH).metadata_props}
    for wrong in (content[:-100], content[:1000], b"\xff" * 20, b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ValueError, match=r"not an ONNX model|truncated"):
            properties(wrong)


RTX = ["--target", "tensorrt-rtx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors", "--target", "onnx"], "missing.safetensors: no such file"),
        (["base", "--target", "onnx"], "base: no such file, and no shipped network (nano, turbo)"),
        (["--target", "web", "--size", "256"], "--target web: takes images of any size; leave out --size"),
        (["missing.onnx", *RTX], "missing.onnx: no such file"),
        (["--target", "onnx", "-o", "network.engine"], "network.engine: name an .onnx file"),
        ([*RTX, "-o", "network.onnx"], "network.onnx: name an .engine file"),
        (["--target", "onnx", "-o", "nowhere/network.onnx"], "the folder nowhere does not exist"),
        (
            ["--target", "onnx", "--batch", "2"],
            "--batch is for --target tensorrt, tensorrt-rtx or onnx with --triton-server",
        ),
        (["picture.png", *RTX], "picture.png: no such file"),
        ([__file__, *RTX], "test_export.py: cannot be exported; give weights (.safetensors) or a graph"),
        ([".", *RTX], ".: is a folder; give weights"),
        ([str(SHIPPED_GRAPH), "--target", "onnx"], "fp16.onnx: is an .onnx file already; give weights"),
        ([*RTX, "--size", "250"], "--size 250: height and width must be multiples of 16, 64 to 16384"),
        ([*RTX, "--size", "48"], "--size 48: height and width must be multiples of 16"),
        ([*RTX, "--size", "big"], "--size big: give HEIGHTxWIDTH"),
        ([*RTX, "--size", "256", "--max", "512"], "--size is one size, --min, --opt and --max are a range"),
        ([*RTX, "--max", "512"], "give --min and --max"),
        ([*RTX, "--min", "512", "--max", "256"], "--opt 256x256: --min, --opt and --max must ascend"),
        ([*RTX, "--min", "128", "--opt", "640x128", "--max", "512"], "--opt 640x128 is larger than --max 512x512"),
        ([*RTX, "--gpu", "sm_87"], "--gpu sm_87: TensorRT-RTX builds for sm_75, sm_80"),
        ([*RTX, "--gpu", "RTX4090"], "--gpu RTX4090: TensorRT-RTX builds for"),
        ([*RTX, "--gpu", "sm_75", "--bf16"], "sm_75: has no bfloat16"),
        ([*RTX, "--plugins"], "--plugins is for --target tensorrt"),
        ([*RTX, "--timing-cache", "t"], "--timing-cache is for --target tensorrt"),
        ([*RTX, "--workspace", "100"], "--workspace is for --target tensorrt: nothing else chooses layers on the GPU"),
        (["--target", "onnx", "--no-check"], "--no-check is for --target tensorrt or tensorrt-rtx: other files are"),
        ([str(SHIPPED_GRAPH), "--plugins"], "fp16.onnx: --plugins takes weights"),
        ([*RTX, "--fp16", "--bf16"], "--fp16, --bf16, --fp32, --int8: give one of them"),
        (
            [*RTX, "--triton-server", "models"],
            "--triton-server is for --target tensorrt or onnx: the server runs nothing else",
        ),
        (["--target", "onnx", "--triton-server", "models", "--min", "64", "--max", "128"], "give one --size"),
        (["--target", "onnx", "--triton-server", "models", "-o", "a/b"], "'a/b': is no name for a model on a server"),
        (["--target", "onnx", "--triton-server", "no/models"], "no/models: is no folder, and cannot be made one"),
        (["--timing-cache", "no/timings"], "--timing-cache no/timings: name a file in a folder that exists"),
        ([], "tensorrt is not installed: pip install 'dmfnet-fast[tensorrt]'; on a Jetson it comes with JetPack"),
        (["--gpu", "sm_87"], "--gpu is for --target tensorrt-rtx: nothing else is built for GPUs"),
        (["--target", "onnx", "--gpu", "sm_89"], "--gpu is for --target tensorrt-rtx"),
        (["--target", "onnx", "--plugins"], "--plugins is for --target tensorrt: nothing else runs them"),
        ([*RTX, "--every-block"], "--every-block is for --int8"),
        ([*RTX, "--fp32", str(SHIPPED_GRAPH)], "its precision is float16, not float32"),
        (["--inspect", "missing.engine"], "missing.engine: no such file"),
        (
            ["--inspect", __file__],
            "test_export.py: unknown kind of engine '.py'; an engine is an .engine, .onnx or .safetensors file",
        ),
        (["--inspect", "--dry-run"], "--dry-run: no such file"),
    ],
)
def test_errors(
    arguments: list[str], message: str, cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.chdir(tmp_path)
    result = cli.invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["changed", "truncated", "another's", "a version before"])
def test_damaged_graphs(damage: str, cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = SHIPPED_GRAPH.read_bytes()
    if damage == "changed":
        middle = len(content) // 3
        content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    elif damage == "truncated":
        content = content[:-5000]
    else:
        model = onnx.ModelProto.FromString(content)
        unwanted = "format" if damage == "another's" else "references"
        kept = [entry for entry in model.metadata_props if entry.key != unwanted]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        content = seal(model.SerializeToString())
    Path("graph.onnx").write_bytes(content)
    result = cli.invoke(main, ["graph.onnx", *RTX])
    assert result.exit_code == 2
    expected = {
        "changed": "has changed since it was exported",
        "truncated": "is not a readable ONNX file, or is damaged",
        "another's": "was not made by dmfnet-export",
        "a version before": "has no 'references' in it, so another version made it",
    }
    assert f"error: graph.onnx: {expected[damage]}" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["graph.onnx"]


def test_dry_run(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--min", "128x160", "--opt", "256", "--max", "512", "--batch", "4", "--gpu", "sm_89, sm_120"]
    result = cli.invoke(main, [*RTX, *options, "--dry-run"])
    assert result.exit_code == 0, result.output
    for words in (
        "tensorrt-rtx",
        "float16",
        "128x160 to 512x512, 1 to 4 pairs",
        "sm_89, sm_120",
        f"dmfnet-{DEFAULT}.engine",
    ):
        assert words in result.stdout
    # For another machine nothing need be installed here; but what is exported must be there.
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert cli.invoke(main, ["--dry-run"]).exit_code == 0
    assert cli.invoke(main, ["missing.onnx", "--dry-run"]).exit_code == 2
    assert not list(tmp_path.iterdir())


def test_missing_extra(cli: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.chdir(tmp_path)
    result = cli.invoke(main, ["--target", "onnx"])
    assert result.exit_code == 2
    assert "onnxscript is not installed: pip install 'dmfnet-fast[export]'" in result.stderr
