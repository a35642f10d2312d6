"""`dmfnet-export --int8`: one export of a small network without noise, and what OpenVINO makes of it."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.artifacts.onnx_metadata import is_sealed
from dmfnet_fast.artifacts.parity import LIMITS
from dmfnet_fast.commands.phantom import write_phantoms
from dmfnet_fast.config import StudentConfig
from dmfnet_fast.engines import shipped
from dmfnet_fast.engines.openvino_engine import OpenVINOEngine, has_bfloat16, shared_core
from dmfnet_fast.errors import EngineError, ImageError
from dmfnet_fast.images.io import read_image, write_image
from dmfnet_fast.model import Network, load_model, optimize, save_model
from dmfnet_fast.model.weights import read_metadata
from dmfnet_fast.precision import FloatPrecision, PrecisionChoice
from export.command import main
from export.int8 import (
    EVERY_BLOCK,
    INNER_BLOCKS,
    WHOLE_STUDENT,
    calibration_pairs,
    calibration_phantoms,
    quantized_weights,
)
from export.onnx.graph import plain_graph
from export.onnx.source import from_content
from export.verify import on_onnx_runtime, pairs_to_check, references
from tests.synthetic_weights import SMALL, model_by_rule, random_inputs, run_model

CONFIG = SMALL["no noise"]
CPU = Path("/proc/cpuinfo")
HAS_AMX = CPU.exists() and "amx_int8" in CPU.read_text()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(model_by_rule(CONFIG), path)
    return path


@pytest.fixture(scope="module")
def floating_point() -> list[bytes]:
    """What `exported` was quantized from: one serialized model."""
    return []


@pytest.fixture(scope="module")
def exported(weights: Path, floating_point: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    def noted(model: Network) -> Any:
        proto = plain_graph(model)
        floating_point.append(proto.SerializeToString())
        return proto

    path = tmp_path_factory.mktemp("exported") / "small-int8.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.onnx.source.STANDARD_SHAPES", ((2, 64, 96),))
        patch.setattr("export.int8.PAIRS", 1)
        patch.setattr("export.int8.SIZE", 64)
        patch.setattr("export.onnx.graph.plain_graph", noted)
        result = CliRunner().invoke(main, [str(weights), "--target", "onnx", "--int8", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}\n", "NNCF's bars and lines are not of the command"
    assert "quantizing" in result.stderr
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return path


def test_what_is_quantized_is_the_network(exported: Path, floating_point: list[bytes]) -> None:
    references = from_content(exported.read_bytes(), exported.name).references
    assert on_onnx_runtime(floating_point[0], "float32", references).within


def convolutions(path: Path) -> tuple[list[onnx.NodeProto], dict[str, onnx.NodeProto]]:
    """All convolutions, and what makes each result."""
    nodes = onnx.load(path).graph.node
    return [n for n in nodes if n.op_type in ("Conv", "ConvTranspose")], {out: n for n in nodes for out in n.output}


def test_file(exported: Path, weights: Path) -> None:
    content = exported.read_bytes()
    assert is_sealed(content)
    graph = from_content(content, exported.name)
    assert graph.precision == "int8"
    assert graph.weights == read_metadata(weights)["sha256"]
    assert graph.config == json.loads(read_metadata(weights)["config"])
    assert [value.name for value in onnx.load(exported).graph.input] == ["a", "b", "interval"]
    assert {(parity.engine, parity.precision) for parity in graph.parity} == {
        ("ONNX Runtime", "int8"),
        ("OpenVINO", "int8"),
    }
    assert all(parity.within for parity in graph.parity)
    # 8 bits are not float32, nor bfloat16 all over: with these the errors of an untrained network are less.
    assert all(parity.max_abs > LIMITS["float32"].max_abs for parity in graph.parity)
    wanted, _ = references(load_model(weights), pairs_to_check([(2, 64, 96)]))
    for ours, theirs in zip(wanted, graph.references, strict=True):
        assert theirs.interface == Interface(timesteps=0, interval=True)
        for name, array in ours.inputs.items():
            np.testing.assert_array_equal(theirs.inputs[name], array)
        assert np.abs(ours.fused - theirs.fused).max() <= 2e-5
    assert b"site-packages" not in content


def test_what_is_quantized(exported: Path, weights: Path) -> None:
    """The blocks' 3x3 convolutions but those of the first and the last, and no other."""
    found, made_by = convolutions(exported)
    stored = {tensor.name: tensor for tensor in onnx.load(exported).graph.initializer}
    names: Counter[str] = Counter()
    modules = optimize(load_model(weights), together=True).state_dict()
    blocks = [name for name in modules if re.search(r"(downs|mid|ups).*conv(1|2|_x|_skip)\.weight$", name)]
    ends = (blocks[0].rpartition(".conv")[0] + ".", blocks[-1].rpartition(".conv")[0] + ".")
    expected = [name for name in blocks if not name.startswith(ends)]
    assert len(blocks) - len(expected) == 2 + 3, "the first block, and the last, whose input was joined"
    assert len(expected) > 50
    for node in found:
        sources = [made_by.get(name) for name in node.input[:2]]
        dequantized = [source for source in sources if source is not None and source.op_type == "DequantizeLinear"]
        assert len(dequantized) in (0, 2), node.name
        if not dequantized:
            assert node.input[1] in stored, "a convolution in floating point has its weights as they are"
            assert not INNER_BLOCKS.fullmatch(node.input[1])
            continue
        name, scale = dequantized[1].input[:2]
        values = onnx.numpy_helper.to_array(stored[name])
        assert values.dtype == np.int8
        assert values.shape[2:] == (3, 3)
        assert np.abs(values).max() in (63, 64), "7 bits, all used"
        assert stored[scale].dims == [values.shape[0]], "a scale for each output channel"
        zero = onnx.numpy_helper.to_array(stored[dequantized[0].input[2]])
        assert 0 < zero - np.iinfo(zero.dtype).min < 64, "activations are asymmetric: SiLU's begin at -0.28"
        # NNCF's own names of what it adds.
        names[re.sub(r"^q_output_|_\d+$", "", name)] += 1
    assert names == dict.fromkeys(expected, 1)


@pytest.mark.parametrize("every_block", [False, True])
def test_student(every_block: bool, cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner blocks; all of them and the first and the last convolution if asked for."""
    monkeypatch.setattr("export.onnx.source.STANDARD_SHAPES", ((2, 64, 96),))
    monkeypatch.setattr("export.int8.PAIRS", 1)
    monkeypatch.setattr("export.int8.SIZE", 64)
    weights, path = tmp_path / "student.safetensors", tmp_path / "student.onnx"
    config = StudentConfig(channels=16, blocks=3)
    save_model(model_by_rule(config), weights)
    options = ["--every-block"] if every_block else []
    result = cli.invoke(main, [str(weights), "--target", "onnx", "--int8", *options, "-o", str(path)])
    assert result.exit_code == 0, result.output
    found, made_by = convolutions(path)
    in_8_bits = [node for node in found if node.input[1] in made_by]
    assert len(found) == 2 + 2 * config.blocks
    assert len(in_8_bits) == (len(found) if every_block else 2)
    engine = OpenVINOEngine(path, "cpu", "auto", 1)
    inputs = random_inputs(config)
    fused = engine.run(inputs)
    assert np.array_equal(engine.run(inputs), fused)
    assert 0 < np.abs(fused - run_model(load_model(weights), inputs)).max() < LIMITS["int8"].max_abs


@pytest.mark.skipif(HAS_AMX, reason="with AMX, OpenVINO multiplies activations with an offset in float32")
def test_openvino_multiplies_in_8_bits(exported: Path) -> None:
    engine = OpenVINOEngine(exported, "cpu", "auto", 1)
    nodes = engine._request(64, 96).get_compiled_model().get_runtime_model().get_ops()
    kinds = [(n.get_rt_info()["layerType"], n.get_rt_info()["runtimePrecision"]) for n in nodes]
    in_8_bits = [kind for kind, precision in kinds if precision in ("u8", "i8") and kind == "Convolution"]
    found, made_by = convolutions(exported)
    assert len(in_8_bits) == sum(node.input[1] in made_by for node in found)


def test_float32_where_bfloat16_does_not_go_with_8_bits(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CPUs with AMX. Other failures stay failures."""

    class Core:
        refused = ("bf16",)

        def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:
            if settings["INFERENCE_PRECISION_HINT"] in self.refused:
                raise RuntimeError("Exception from core.cpp:\nNo suitable implementations.\n")
            return shared_core().compile_model(model, device, settings)

    engine = OpenVINOEngine(exported, "cpu", "auto", 1)
    inputs = random_inputs(CONFIG)
    monkeypatch.setitem(engine._settings, "INFERENCE_PRECISION_HINT", "f32")
    expected = engine.run(inputs)
    engine._requests.clear()
    monkeypatch.setitem(engine._settings, "INFERENCE_PRECISION_HINT", "bf16")
    monkeypatch.setattr(engine, "_core", Core())
    np.testing.assert_array_equal(engine.run(inputs), expected)
    engine._requests.clear()
    monkeypatch.setattr(Core, "refused", ("bf16", "f32"))
    with pytest.raises(EngineError, match=r"OpenVINO cannot run the network: No suitable implementations\.$"):
        engine.run(inputs)


def test_fuser(exported: Path, weights: Path) -> None:
    in_8_bits: tuple[PrecisionChoice, ...] = ("auto", "int8")
    inputs = random_inputs(CONFIG)
    for asked in in_8_bits:
        with Fuser(exported, precision=asked) as fuser:
            assert fuser.info["precision"] == "int8"
            assert isinstance(fuser._engine, OpenVINOEngine)
            assert fuser._engine._settings["INFERENCE_PRECISION_HINT"] == ("bf16" if has_bfloat16() else "f32")
            fused = fuser.run(**inputs)
            assert np.array_equal(fuser.run(**inputs), fused)
    with Fuser(weights, precision="float32") as exact:
        error = np.abs(exact.run(**inputs) - fused)
    assert 0 < error.max() < LIMITS["int8"].max_abs
    others: tuple[FloatPrecision, ...] = ("float32", "bfloat16")
    for asked in others:
        with pytest.raises(EngineError, match=rf"its precision is int8; for precision '{asked}' make a file with"):
            Fuser(exported, precision=asked)
    with pytest.raises(
        EngineError, match=r"small\.safetensors: precision 'int8': on a CPU use auto, .*, or an \.onnx file"
    ):
        Fuser(weights, precision="int8")


@pytest.mark.parametrize("precision", [[], ["--int8"], ["--bf16"]])
def test_no_engine_is_built_of_it(precision: list[str], exported: Path, cli: CliRunner, tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "network.engine")]
    result = cli.invoke(main, [str(exported), "--target", "tensorrt-rtx", *precision, *output])
    assert result.exit_code == 2
    wanted = "--int8 is for --target onnx" if "--int8" in precision else "is an int8 network for OpenVINO"
    assert wanted in result.stderr
    assert not list(tmp_path.iterdir())


def test_missing_extra(cli: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.chdir(tmp_path)
    result = cli.invoke(main, ["--target", "onnx", "--int8"])
    assert result.exit_code == 2
    assert "nncf is not installed: pip install 'dmfnet-fast[int8]'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_worse_network_fails(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are not so wide that nano's activations, cut at two thirds of their range, would pass."""
    monkeypatch.setattr("export.onnx.source.STANDARD_SHAPES", ((2, 64, 96),))
    exported = tmp_path / "nano.onnx"
    result = cli.invoke(main, [str(shipped()["nano"]), "--target", "onnx", "--int8", "-o", str(exported)])
    assert result.exit_code == 0, result.output
    model = onnx.load(exported)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        scale = stored.get(node.input[1]) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
        if scale is not None and not scale.dims:
            value = onnx.numpy_helper.to_array(scale) / 1.5
            scale.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), scale.name))
            del stored[node.input[1]]
    parity = on_onnx_runtime(model.SerializeToString(), "int8", from_content(exported.read_bytes(), "").references)
    assert not parity.within


def test_phantoms_to_calibrate_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """One head for each pair, none of them what an export is verified with."""
    monkeypatch.setattr("export.int8.SIZE", 64)
    pairs = calibration_phantoms()
    assert len({a.tobytes() for a, _ in pairs}) == 24
    assert {image.shape for pair in pairs for image in pair} == {(64, 64)}
    verified = {image.tobytes() for a, _ in pairs_to_check([(2, 64, 64)]) for image in a}
    assert not verified & {a.tobytes() for a, _ in pairs}


def test_given_pairs(tmp_path: Path) -> None:
    list(write_phantoms(tmp_path, train=9, test=1, size=72))
    (tmp_path / "train" / "CT-MRI" / "notes.txt").touch()
    pairs = calibration_pairs(tmp_path)
    assert len(pairs) == 24, "some of each modality"
    assert {image.shape for pair in pairs for image in pair} == {(64, 64)}
    mri = read_image(tmp_path / "train" / "CT-MRI" / "MRI" / "001.png")
    np.testing.assert_array_equal(pairs[0][0], mri[4:-4, 4:-4])
    wide = np.zeros((300, 530), np.uint8)
    for kind in ("MRI", "PET"):
        write_image(tmp_path / "train" / "PET-MRI" / kind / "000.png", wide)
    assert calibration_pairs(tmp_path)[8][0].shape == (256, 256)


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("MRI/007.png", np.zeros((64, 64), np.uint8), r"MRI/007\.png: has no partner in .*CT$"),
        ("CT/001.png", np.zeros((64, 80), np.uint8), r"CT/001\.png is 80x64: register them to one size"),
    ],
)
def test_pairs_that_cannot_be_used(name: str, image: np.ndarray, message: str, tmp_path: Path) -> None:
    list(write_phantoms(tmp_path, train=1, test=0, size=64))
    write_image(tmp_path / "train" / "CT-MRI" / name, image)
    with pytest.raises(ImageError, match=message):
        calibration_pairs(tmp_path)


def test_pairs_that_are_too_small(tmp_path: Path) -> None:
    for kind in ("MRI", "CT"):
        (tmp_path / "train" / "CT-MRI" / kind).mkdir(parents=True)
        write_image(tmp_path / "train" / "CT-MRI" / kind / "001.png", np.zeros((48, 64), np.uint8))
    with pytest.raises(ImageError, match=r"MRI/001\.png: is 64x48; the smallest size is 64x64"):
        calibration_pairs(tmp_path)


def test_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"train: holds no pairs; pairs are in folders named B-A"):
        calibration_pairs(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--int8"], "--int8 is for --target onnx: OpenVINO alone"),
        (["--int8", "--target", "tensorrt-rtx"], "--int8 is for --target onnx: OpenVINO alone"),
        (["--int8", "--target", "onnx", "--triton-server", "models"], "--int8 is not for --backend onnxruntime"),
        (["--int8", "--fp16", "--target", "onnx"], "--fp16, --bf16, --fp32, --int8: give one of them"),
        (["--int8", "--bf16", "--target", "onnx"], "--fp16, --bf16, --fp32, --int8: give one of them"),
        (["--target", "onnx", "--calibrate", "."], "--calibrate is for --int8"),
        (["--int8", "--target", "onnx", "--calibrate", "nowhere"], "--calibrate nowhere: is no folder"),
        (["--int8", "--target", "onnx", "--calibrate", "."], "holds no pairs"),
        (["--target", "onnx", "--every-block"], "--every-block is for --int8"),
    ],
)
def test_errors(
    arguments: list[str], message: str, cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli.invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_dry_run(cli: CliRunner, tmp_path: Path) -> None:
    result = cli.invoke(main, ["--target", "onnx", "--int8", "--calibrate", str(tmp_path), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "precision  int8" in result.stdout
    assert f"calibrated on {tmp_path}" in result.stdout


@pytest.mark.parametrize("pattern", [INNER_BLOCKS, EVERY_BLOCK])
def test_weights_only_of_blocks(pattern: re.Pattern[str]) -> None:
    """Not the first convolution, the attention, the gates, the head, nor what averages means."""
    kept = ("init_conv", "mid.0.attention.qkv", "ups.3.conv", "downs.2.conv", "ups.2.res_conv", "ups.0.shortcuts.0")
    assert not any(pattern.fullmatch(f"denoiser.{name}.weight") for name in kept)
    others = ("decoder.1.att.own", "decoder.0.projections.0", "decoder.0.conv", "rgb_decode1.conv")
    assert not any(pattern.fullmatch(f"fusion.{name}.weight") for name in others)
    for name in ("downs.1.conv1", "mid.0.conv2", "ups.0.conv_skip", "ups.14.conv_x"):
        assert pattern.fullmatch(f"denoiser.{name}.weight")
    for name in ("downs.0.conv1", "ups.16.conv2"):
        assert bool(pattern.fullmatch(f"denoiser.{name}.weight")) == (pattern is EVERY_BLOCK)


def test_weights_only_of_students_blocks() -> None:
    inner = quantized_weights(StudentConfig(channels=16, blocks=12).to_dict(), every_block=False)
    for name in ("first", "last", "blocks.0.0", "blocks.11.2"):
        assert WHOLE_STUDENT.fullmatch(f"{name}.weight")
        assert not inner.fullmatch(f"{name}.weight")
    for name in ("blocks.1.0", "blocks.10.2"):
        assert inner.fullmatch(f"{name}.weight")
    two = quantized_weights(StudentConfig(channels=16, blocks=2).to_dict(), every_block=False)
    assert two.fullmatch("blocks.1.2.weight")


@pytest.mark.parametrize(("option", "pattern"), [([], INNER_BLOCKS), (["--every-block"], EVERY_BLOCK)])
def test_every_block(
    option: list[str], pattern: re.Pattern[str], weights: Path, cli: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: object, quantized: re.Pattern[str], *_rest: object) -> None:
        raise EngineError(f"asked for {quantized.pattern}")

    monkeypatch.setattr("export.onnx.graph.plain_graph", lambda _: None)
    monkeypatch.setattr("export.onnx.source.quantize", stop)
    monkeypatch.chdir(weights.parent)
    result = cli.invoke(main, [str(weights), "--target", "onnx", "--int8", *option, "-o", "x.onnx"])
    assert result.exit_code == 2
    assert f"asked for {pattern.pattern};" in result.stderr or f"asked for {pattern.pattern}\n" in result.stderr
