"""`dmfnet-export`: one export of a network with weights made by rule, seen from all sides."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from dmfnet_fast import Fuser
from dmfnet_fast.engines import SHIPPED_WEIGHTS
from dmfnet_fast.errors import EngineError
from dmfnet_fast.model import load_model
from dmfnet_fast.model.weights import read_metadata
from export.command import main
from export.graph import OPSET
from export.verify import LIMITS, check, compare, verify

from ..rules import GOLDEN


@pytest.fixture(scope="module")
def exported(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "base.onnx"
    result = CliRunner().invoke(main, [str(converted), "--target", "onnx", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{path}\n"
    assert "exporting" in result.stderr
    assert "ONNX Runtime, float32: max abs error" in result.stderr
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
    assert str(Path(main.callback.__code__.co_filename).parent).encode() not in text  # type: ignore[union-attr]
    assert b"pkg.torch" not in text
    assert b"site-packages" not in text


@pytest.mark.parametrize("file", ["golden_64", "golden_64x96"])
def test_golden(exported: Path, file: str) -> None:
    with np.load(GOLDEN / f"{file}.npz") as golden:
        a, b, noise, fused = (golden[name] for name in ("a", "b", "noise", "fused"))
    with Fuser(exported, precision="float32") as fuser:
        result = fuser.run(a[None, None], b[None, None], noise)
    assert np.abs(result[0, 0] - fused).max() <= 2e-5


def test_shipped_file_is_the_shipped_weights() -> None:
    model = onnx.load(SHIPPED_WEIGHTS.with_suffix(".onnx"))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["sha256"] == read_metadata(SHIPPED_WEIGHTS)["sha256"]
    results = list(verify(load_model(SHIPPED_WEIGHTS), model.SerializeToString()))
    assert {parity.precision for parity in results} >= {"float32"}
    for parity in results:
        check(parity)


def test_a_wrong_network_fails() -> None:
    model = onnx.load(SHIPPED_WEIGHTS.with_suffix(".onnx"))
    (last,) = [tensor for tensor in model.graph.initializer if tensor.name.endswith("rgb_decode1.conv.weight")]
    values = onnx.numpy_helper.to_array(last)
    last.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), last.name))
    parity = next(iter(verify(load_model(SHIPPED_WEIGHTS), model.SerializeToString())))
    assert not parity.within
    with pytest.raises(EngineError, match=r"differs from the weights: .*limit 0\.0001.*nothing was written"):
        check(parity)


def test_onnx_runtime_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old(*_: Any, **__: Any) -> None:
        raise ValueError("opset 20 is not supported")

    monkeypatch.setattr("onnxruntime.InferenceSession", too_old)
    content = SHIPPED_WEIGHTS.with_suffix(".onnx").read_bytes()
    with pytest.raises(EngineError, match="opset 20 is not supported; upgrade onnxruntime or uninstall it"):
        next(iter(verify(load_model(SHIPPED_WEIGHTS), content)))


def test_parity() -> None:
    reference = np.full((1, 1, 64, 64), -0.5)
    equal = compare("x", "float32", [reference], [reference])
    assert equal.to_dict() == {"engine": "x", "precision": "float32", "max_abs": 0.0, "psnr": None}
    assert equal.within
    step = 1 / 127.5
    off = compare("x", "bfloat16", [reference + step], [reference])
    assert off.max_abs == pytest.approx(step)
    assert off.psnr == pytest.approx(20 * np.log10(255))
    assert off.within
    assert not compare("x", "bfloat16", [reference + 4 * step], [reference]).within


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors", "--target", "onnx"], "missing.safetensors: no such file"),
        (["--target", "onnx", "-o", "network.engine"], "network.engine: name an .onnx file"),
        (["--target", "onnx", "-o", "nowhere/network.onnx"], "the folder nowhere does not exist"),
        ([], "Missing option '--target'"),
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


def test_missing_extra(cli: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.chdir(tmp_path)
    result = cli.invoke(main, ["--target", "onnx"])
    assert result.exit_code == 2
    assert "onnxscript is not installed: pip install 'dmfnet-fast[export]'" in result.stderr
