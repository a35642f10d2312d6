"""The CPU engine: exported networks by OpenVINO."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dmfnet_fast import Fuser
from dmfnet_fast.engines import SHIPPED_WEIGHTS, openvino_engine, shipped_engine
from dmfnet_fast.engines.openvino_engine import OpenVINOEngine
from dmfnet_fast.errors import EngineError, MissingExtraError
from dmfnet_fast.model import load_model
from dmfnet_fast.noise import fusion_noise
from dmfnet_fast.phantom import Phantom

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
    """The first sizes have compiled models of their own, the others share one."""
    a, b = images(2, *size)
    with torch.no_grad():
        network = load_model(SHIPPED_WEIGHTS)
        expected = network(*map(torch.tensor, (a, b, fusion_noise(0, *size)))).numpy()
    fused = exact.run(a, b)
    assert np.abs(fused - expected).max() <= 2e-5
    assert np.array_equal(exact.run(a[1:], b[1:]), fused[1:]), "pairs of a batch do not depend on each other"
    assert np.array_equal(exact.run(a, b), fused)
    engine = exact._engine
    assert isinstance(engine, OpenVINOEngine)
    assert len(engine._requests) <= openvino_engine.OWN_SIZES + 1


def test_info_and_auto(phantom: Phantom) -> None:
    with Fuser() as fuser:
        info = fuser.info
        assert info["file"] == "dmfnet-tiny.onnx"
        assert info["engine"].startswith("openvino 20")
        assert info["device"] == "cpu"
        assert info["precision"] in ("bfloat16", "float32")
        fused = fuser.fuse(phantom.mri, phantom.pet)
    assert len(info["weights"]) == 64
    with Fuser(SHIPPED_WEIGHTS, precision="float32") as by_torch:
        assert by_torch.info["weights"] == info["weights"]
        difference = np.abs(by_torch.fuse(phantom.mri, phantom.pet).astype(int) - fused)
    assert difference.mean() < 1
    assert difference.max() <= 12


def test_which_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped_engine("cpu") == SHIPPED
    assert shipped_engine("cuda") == SHIPPED_WEIGHTS
    monkeypatch.setattr("dmfnet_fast.engines.find_spec", lambda name: None if name == "openvino" else object())
    assert shipped_engine("cpu") == SHIPPED_WEIGHTS
    monkeypatch.setattr("dmfnet_fast.engines.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"dmfnet-fast\[torch\].*for CPUs 'dmfnet-fast\[cpu\]'"):
        shipped_engine("cpu")
    with pytest.raises(MissingExtraError, match=r"dmfnet-fast\[torch\]'$"):
        shipped_engine("cuda")


def test_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"openvino is not installed: pip install 'dmfnet-fast\[cpu\]'"):
        Fuser(SHIPPED)


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
    with pytest.raises(EngineError, match=r"other\.onnx: was not made by dmfnet-export \(its inputs are x\)"):
        Fuser(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda"}, "run on the CPU, not on 'cuda'"),
        ({"precision": "float16"}, "precision 'float16': on a CPU use auto, float32 or bfloat16"),
        ({"precision": "int8"}, "precision 'int8': use auto, float32, bfloat16, float16"),
    ],
)
def test_what_it_cannot_do(arguments: dict[str, str], message: str) -> None:
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
    (blob,) = cache.glob("*.blob")
    with Fuser(SHIPPED, precision="float32") as fuser:
        assert np.array_equal(fuser.run(*pair), first)
    assert list(cache.glob("*.blob")) == [blob]

    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:1000])
    with Fuser(SHIPPED, precision="float32") as fuser:
        assert np.array_equal(fuser.run(*pair), first), "a damaged cache is not used"

    monkeypatch.setattr(openvino_engine, "CACHE_BYTES", 10)
    openvino_engine._prune(cache)
    assert not list(cache.glob("*.blob"))

    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("DMFNET_CACHE", str(in_the_way))
    with Fuser(SHIPPED, precision="float32") as fuser:
        assert np.array_equal(fuser.run(*pair), first), "no cache, no harm"
