"""The CPU engine: exported networks by OpenVINO."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.cache import prune
from dmfnet_fast.engines import DEFAULT, SHIPPED_WEIGHTS, openvino_engine, shipped, shipped_engine
from dmfnet_fast.engines.openvino_engine import OpenVINOEngine
from dmfnet_fast.errors import EngineError, MissingExtraError, OutOfMemoryError
from dmfnet_fast.model import Network, Student, load_model
from dmfnet_fast.phantom import Phantom
from tests.synthetic_weights import random_inputs, run_model

SHIPPED = SHIPPED_WEIGHTS.with_suffix(".onnx")


@pytest.fixture(scope="module")
def exact() -> Iterator[Fuser]:
    with Fuser(SHIPPED, precision="float32", threads=1) as fuser:
        yield fuser


def images(count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, count, 1, height, width)).astype(np.float32)
    return a, b


@pytest.mark.parametrize("size", [(64, 64), (64, 80), (96, 64), (64, 112)])
def test_sizes(exact: Fuser, size: tuple[int, int]) -> None:
    network = load_model(SHIPPED_WEIGHTS)
    inputs = random_inputs(network.config, 2, *size)
    expected = run_model(network, inputs)
    fused = exact._engine.run(inputs)
    assert np.abs(fused - expected).max() <= 2e-5
    assert np.array_equal(exact._engine.run(inputs), fused)


@pytest.fixture(scope="module", params=["turbo", "nano"])
def graph(request: pytest.FixtureRequest) -> tuple[Path, Network]:
    """The shipped graph of a DM-FNet and of a student, with the network as trained."""
    weights = shipped()[request.param]
    return weights.with_suffix(".onnx"), load_model(weights)


def test_batches(graph: tuple[Path, Network]) -> None:
    path, model = graph
    engine = OpenVINOEngine(path, "cpu", "float32", 1)
    assert engine.interface.names == ("a", "b", "interval")
    for size in ((64, 80), (96, 64)):
        inputs = random_inputs(model.config, 2, *size)
        fused = engine.run(inputs)
        assert np.abs(fused - run_model(model, inputs)).max() <= 2e-5
        lowest, highest = np.split(inputs["interval"], 2, axis=1)
        assert ((lowest <= fused) & (fused <= highest)).all()
        assert np.array_equal(engine.run(inputs), fused)
        alone = {name: array[1:] for name, array in inputs.items()}
        assert np.array_equal(engine.run(alone), fused[1:]), "pairs of a batch do not depend on each other"


def test_a_students_nodes_are_few(graph: tuple[Path, Network]) -> None:
    """ReLUs and sums are parts of the convolutions, and nothing is rearranged by hand."""
    path, model = graph
    if not isinstance(model, Student):
        pytest.skip("of a student alone")
    compiled = OpenVINOEngine(path, "cpu", "float32", 1)._request(64, 64).get_compiled_model()
    kinds = Counter(node.get_rt_info()["layerType"] for node in compiled.get_runtime_model().get_ops())
    assert kinds["Convolution"] == 2 + 2 * model.config.blocks
    assert kinds["SpaceToDepth"] == kinds["DepthToSpace"] == 1
    assert not {"Transpose", "Gather", "ShapeOf"} & set(kinds)


def test_compiled_models_are_kept_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVINOEngine(SHIPPED, "cpu", "float32", None)
    compiled = []
    monkeypatch.setattr(openvino_engine, "KEPT_SIZES", 2)
    core = engine._core

    class Counting:
        def compile_model(self, model: Any, *rest: Any) -> Any:
            compiled.append(model.inputs[0].get_shape()[2])
            return core.compile_model(model, *rest)

    engine._core = Counting()
    for size in (64, 80, 64, 96, 64, 80):
        engine._request(size, size)
    assert compiled == [64, 80, 96, 80], "the one that was not used for longest is dropped"


@pytest.mark.parametrize("native", [False, True])
def test_precision_by_cpu(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "has_bfloat16", lambda: native)
    with Fuser(SHIPPED) as fuser:
        assert fuser.info["precision"] == ("bfloat16" if native else "float32")
    if not native:
        with pytest.raises(EngineError, match="OpenVINO reports none for this CPU; use auto or float32"):
            Fuser(SHIPPED, precision="bfloat16")


def test_settings_reach_openvino() -> None:
    engine = OpenVINOEngine(SHIPPED, "cpu", "float32", 1)
    compiled = engine._request(64, 64).get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


@pytest.mark.parametrize("name", ["nano", "turbo"])
def test_info_and_auto(name: str, phantom: Phantom) -> None:
    with Fuser(name) as fuser:
        info = fuser.info
        assert info["file"] == f"dmfnet-{name}.onnx"
        assert info["engine"].startswith("openvino 20")
        assert info["device"] == "cpu"
        assert info["precision"] in ("bfloat16", "float32")
        fused = fuser.fuse(phantom.mri, phantom.pet)
    assert len(info["weights"]) == 64
    with Fuser(shipped()[name], precision="float32") as by_torch:
        assert by_torch.info["weights"] == info["weights"]
        difference = np.abs(by_torch.fuse(phantom.mri, phantom.pet).astype(int) - fused)
    assert difference.mean() < 1
    assert difference.max() <= 12


def test_which_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped_engine(DEFAULT, "cpu") == SHIPPED
    assert shipped_engine(DEFAULT, "cuda") == SHIPPED_WEIGHTS
    monkeypatch.setattr("dmfnet_fast.engines.find_spec", lambda name: None if name == "openvino" else object())
    assert shipped_engine(DEFAULT, "cpu") == SHIPPED_WEIGHTS
    monkeypatch.setattr("dmfnet_fast.engines.find_spec", lambda _: None)
    with pytest.raises(
        MissingExtraError, match=rf"{DEFAULT} on cpu is installed: .*\[cpu\]' or 'dmfnet-fast\[torch\]'"
    ):
        shipped_engine(DEFAULT, "cpu")
    with pytest.raises(MissingExtraError, match=rf"{DEFAULT} on cuda is installed: pip install 'dmfnet-fast\[gpu\]'$"):
        shipped_engine(DEFAULT, "cuda")
    with pytest.raises(EngineError, match="device 'cudo': use cpu, cuda or cuda:N"):
        shipped_engine(DEFAULT, "cudo")


def test_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"openvino is not installed: pip install 'dmfnet-fast\[cpu\]'"):
        Fuser(SHIPPED)

    def broken(_: str) -> None:
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(MissingExtraError, match=r"openvino is installed but cannot be loaded \(libopenvino.so"):
        Fuser(SHIPPED)


def test_openvino_reports_nothing(tmp_path: Path) -> None:
    """Its telemetry, which keeps an ID in the home, is not loaded."""
    code = "import sys; from dmfnet_fast import Fuser; Fuser().close(); print(sys.modules['openvino_telemetry'])"
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment = {**kept, "HOME": str(tmp_path), "DMFNET_CACHE": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "None\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_files_that_are_no_engine(tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(SHIPPED.read_bytes()[:100_000])
    with pytest.raises(EngineError, match=r"cut\.onnx: is not a readable ONNX file"):
        Fuser(cut)
    other = tmp_path / "other.onnx"
    port = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("x", "y")]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    opset = [onnx.helper.make_opsetid("", 20)]
    graph = onnx.helper.make_graph([node], "other", port[:1], port[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), other)
    with pytest.raises(EngineError, match=r"other\.onnx: was not made by dmfnet-export; make it"):
        Fuser(other)
    half = SHIPPED.with_name("dmfnet-nano-fp16.onnx")
    with pytest.raises(EngineError, match=r"fp16\.onnx: is a float16 graph to build TensorRT engines from"):
        Fuser(half)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    content = bytearray(SHIPPED.read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(content)
    with pytest.raises(EngineError, match=r"changed\.onnx: has changed since it was exported, or is damaged"):
        Fuser(changed)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("[CPU] Failed to allocate 1000 bytes of memory", OutOfMemoryError),
        ("could not create a memory object", OutOfMemoryError),
        ("std::bad_alloc", OutOfMemoryError),
        ("Check 'false' failed", EngineError),
    ],
)
def test_errors_while_it_runs(words: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError(f"Exception from src/inference/src/cpp/infer_request.cpp:224:\n{words}\n\n")

    with Fuser(SHIPPED) as fuser:
        monkeypatch.setattr(fuser._engine, "_request", fails)
        with pytest.raises(error) as caught:
            fuser.run(*images(1, 64, 64))
    assert "\n" not in str(caught.value)
    assert "src/inference" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda"}, "run on the CPU, not on 'cuda'"),
        ({"precision": "float16"}, "precision 'float16': on a CPU use auto, float32, bfloat16 or int8"),
        ({"precision": "int8"}, "its precision is float32; make a file with dmfnet-export --target onnx --int8"),
        ({"precision": "int4"}, "precision 'int4': use auto, float32, bfloat16, float16, int8"),
    ],
)
def test_what_it_cannot_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Fuser(SHIPPED, **arguments)


def test_closed() -> None:
    fuser = Fuser(SHIPPED)
    fuser.close()
    fuser.close()
    with pytest.raises(EngineError, match="closed"):
        fuser.run(*images(1, 64, 64))


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("DMFNET_CACHE", str(cache))
    pair = images(1, 64, 64)
    with Fuser(SHIPPED, precision="float32") as fuser:
        first = fuser.run(*pair)
    cache = cache / "dmfnet-fast"
    (blob,) = cache.glob("*.blob")
    written = blob.stat().st_mtime_ns
    with Fuser(SHIPPED, precision="float32") as fuser:
        assert np.array_equal(fuser.run(*pair), first)
    assert list(cache.glob("*.blob")) == [blob]
    assert blob.stat().st_mtime_ns == written, "read, not written anew"

    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:1000])
    with Fuser(SHIPPED, precision="float32") as fuser:
        assert np.array_equal(fuser.run(*pair), first), "a damaged cache is not used"

    monkeypatch.setattr("dmfnet_fast.artifacts.cache.CACHE_BYTES", 10)
    prune(cache)
    assert not list(cache.glob("*.blob"))

    (cache / "foreign.txt").touch()
    prune(cache)
    assert (cache / "foreign.txt").exists()

    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("DMFNET_CACHE", str(in_the_way))
    with Fuser(SHIPPED, precision="float32") as fuser:
        assert np.array_equal(fuser.run(*pair), first), "no cache, no harm"
