"""The runtime for TensorRT engines, with stand-ins for what needs a GPU: see fake_tensorrt."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.manifest import Manifest, check_path, manifest_path, save_check
from dmfnet_fast.artifacts.network_inputs import pixel_inputs
from dmfnet_fast.artifacts.parity import Reference
from dmfnet_fast.engines import open_engine
from dmfnet_fast.engines.cuda_runtime import Cuda
from dmfnet_fast.engines.tensorrt import KEPT_SHAPES, TensorRTEngine
from dmfnet_fast.errors import DMFNetWarning, EngineError, ImageError, MissingExtraError, OutOfMemoryError
from dmfnet_fast.images.rules import Rules
from tests.engines import fake_tensorrt as fake
from tests.synthetic_weights import SMALL, random_inputs

VERIFIED = {
    **{"engine": "x", "precision": "float16", "sizes": ["64x64"]},
    **{"max_abs": 0.001, "percentile": 0.001, "psnr": 70.0, "ssim": 1.0, "objective": 0.0},
}

MODEL = fake.MODEL


def _manifest(content: bytes, **changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "precision": "float16",
        "flavour": "tensorrt",
        "version": "10.13.2",
        "compute_capabilities": ["8.9"],
        "device": MODEL,
        "shapes": {"min": [1, 64, 64], "opt": [2, 64, 96], "max": [2, 128, 160]},
        "engine": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)},
        "weights": "ab" * 32,
        "config": {},
        "training": {},
        "plugins": [],
        "layers": {"count": 0, "reformats": 0, "kinds": {}, "list": []},
        "largest_activation": 272.0,
        "graph_parity": [],
        "parity": {MODEL: VERIFIED},
        "check": None,
        "built": "2026-01-01T00:00:00+00:00",
        "build_seconds": 1.0,
        "versions": {},
    }
    return Manifest(**values | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    engine = tmp_path / "tiny.engine"
    engine.write_bytes(b"an engine" * 100)
    _manifest(engine.read_bytes()).write(engine)
    return engine


def _change(path: Path, **changes: Any) -> None:
    _manifest(path.read_bytes(), **changes).write(path)


class World:
    """The stand-ins in their places."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.put()

    def put(self, flavour: str = "tensorrt", version: str = "10.13.2", **cuda: Any) -> None:
        self.cuda = fake.Cuda(**cuda)
        self.trt = fake.TensorRT(self.cuda, flavour, version)
        self._patch.setitem(sys.modules, "cuda.bindings.runtime", fake.module(self.cuda))
        self._patch.setitem(sys.modules, flavour.replace("-", "_"), self.trt)

    def assert_nothing_left(self) -> None:
        gc.collect()
        assert not self.trt.broken
        assert not self.cuda.held
        assert self.cuda.device_bytes == 0
        assert not self.trt.contexts
        assert not self.trt.engines


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for caches."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DMFNET_CACHE", str(folder))
    return folder


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # What other tests have left in memory makes every collection slow.
    gc.collect()
    gc.freeze()
    yield World(monkeypatch)
    gc.unfreeze()


def _inputs(pairs: int = 1, height: int = 64, width: int = 96, seed: int = 0) -> dict[str, Any]:
    """With noise that could change."""
    inputs = random_inputs(SMALL["paper's"], pairs, height, width, seed)
    return {**inputs, "noise": inputs["noise"] + np.float32(seed)}


def _open(path: Path, **options: Any) -> TensorRTEngine:
    engine = open_engine(path, options.get("device"), options.get("precision", "auto"), None)
    assert isinstance(engine, TensorRTEngine)
    return engine


def _fuse_once(path: Path) -> None:
    engine = _open(path)
    try:
        engine.run(_inputs())
    finally:
        engine.close()


def test_stand_ins_are_like_the_real_ones() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for stand_in, name in fake.STANDS_FOR.items():
        offered = {n for n in (*vars(stand_in), *stand_in.__annotations__) if not n.startswith("_")}
        assert offered <= set(dir(getattr(trt, name)))
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(trt.ExecutionContextAllocationStrategy, "USER_MANAGED")
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")


def test_runs(path: Path, world: World) -> None:
    engine = _open(path)
    first, second = _inputs(seed=1), _inputs(seed=2)
    results = [engine.run(first), engine.run(second), engine.run(first)]
    for result, inputs in zip(results, (first, second, first), strict=True):
        np.testing.assert_allclose(result, fake.expected(inputs), atol=1e-6)
    assert results[0].base is None  # the caller's own
    assert world.cuda.calls.count("create_execution_context") == 1
    assert world.cuda.calls.count("cudaGraphLaunch") == 3
    assert engine.info == {
        "engine": "tensorrt 10.13.2",
        "device": "cuda:0",
        "precision": "float16",
        "weights": "ab" * 32,
        "verified": "yes",
    }
    engine.close()
    engine.close()
    world.assert_nothing_left()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run(first)


def test_order(path: Path, world: World) -> None:
    engine = _open(path)
    assert "cudaMalloc" not in world.cuda.calls  # nothing is taken before a shape is known
    engine.run(_inputs())
    calls = world.cuda.calls
    at = calls.index
    assert at("cudaStreamCreateWithFlags") < at("deserialize_cuda_engine")
    assert at("create_execution_context") < at("set_input_shape") < at("set_tensor_address") < at("execute_async_v3")
    assert at("execute_async_v3") < at("cudaStreamSynchronize") < at("cudaStreamBeginCapture")
    assert at("cudaStreamEndCapture") < at("cudaGraphInstantiate") < at("cudaGraphDestroy") < at("cudaGraphLaunch")
    before = len(calls)
    inputs = _inputs()
    engine.run(inputs)
    assert calls[before:] == ["cudaGetDevice", "cudaMemcpyAsync", "cudaGraphLaunch", "cudaStreamSynchronize"]
    inputs["noise"].flags.writeable = False
    for _ in range(2):
        before = len(calls)
        engine.run(inputs)
    # The noise is there already.
    assert calls[before:] == ["cudaGetDevice", "cudaGraphLaunch", "cudaStreamSynchronize"]
    before = len(calls)
    engine.close()
    freed = calls[before:]
    assert freed.index("cudaGraphExecDestroy") < freed.index("cudaFree") < freed.index("cudaFreeHost")
    assert freed[-1] == "cudaStreamDestroy"


def test_no_call_that_fails_leaves_anything(path: Path, world: World) -> None:
    """Each call in turn fails, on the way to a first image."""
    engine = _open(path)
    engine.run(_inputs())
    of_cuda = [n for n, name in enumerate(world.cuda.calls) if name.startswith("cuda")]
    engine.close()
    assert len(of_cuda) > 25
    for number in of_cuda:
        world.put()
        world.cuda.fails_at = number
        # What fails to be captured runs without a graph, and that is said.
        with pytest.raises((EngineError, DMFNetWarning), match=r"unknown error|be a CUDA graph"):
            _fuse_once(path)
        assert not world.cuda.recording
        if world.cuda.calls[number] == "cudaGraphDestroy":
            # What could not be freed stays, and in the stand-in all that it refers to; nothing else does.
            assert [kind for kind, *_ in world.cuda.held.values()] == ["graph"]
        else:
            world.assert_nothing_left()


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("opens", r"TensorRT cannot open .*tiny.engine, which may be damaged \(export it again\): magic tag does not"),
        ("makes_contexts", "TensorRT cannot make an execution context"),
        ("takes_shapes", "TensorRT cannot take a of"),
        ("runs", "TensorRT cannot run the engine"),
    ],
)
def test_tensorrt_fails(path: Path, world: World, attribute: str, message: str) -> None:
    setattr(world.trt, attribute, False)
    with pytest.raises(EngineError, match=message):
        _fuse_once(path)
    world.assert_nothing_left()


@pytest.mark.parametrize("method", ["create_runtime_config", "create_runtime_cache"])
def test_rtx_fails(path: Path, world: World, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """What failed is said, not that closing did."""
    world.put("tensorrt-rtx", "1.7.1.116")
    _change(path, flavour="tensorrt-rtx", version="1.7.1.116")
    owner = fake.CudaEngine if method == "create_runtime_config" else fake.RuntimeConfig
    monkeypatch.setattr(owner, method, lambda _: None)
    with pytest.raises(EngineError, match="TensorRT cannot make a runtime c"):
        _open(path)
    world.assert_nothing_left()


def _closing(world: World, path: Path) -> tuple[TensorRTEngine, int]:
    """An engine with several shapes, and the number of the next call."""
    engine = _open(path)
    for width in (64, 80, 96):
        engine.run(_inputs(width=width))
    return engine, len(world.cuda.calls)


def test_closing_goes_on(path: Path, world: World) -> None:
    """Each call in turn fails while closing: all else is freed, by the one call of close."""
    engine, start = _closing(world, path)
    engine.close()
    names = world.cuda.calls[start:]
    assert len(names) > 25
    for number, name in enumerate(names, start):
        world.put()
        engine, _ = _closing(world, path)
        world.cuda.fails_at = number
        with pytest.raises(EngineError, match="unknown error"):
            engine.close()
        assert (len(world.cuda.held) == 1) != (name == "cudaGetDevice")
        engine.close()


def test_another_thread_closes(path: Path, world: World) -> None:
    world.put(gpus=2)
    engine = _open(path, device="cuda:1")
    engine.run(_inputs())
    before = len(world.cuda.devices)
    thread = threading.Thread(target=engine.close)
    thread.start()
    thread.join()
    assert world.cuda.devices[before:] == [1, 0]
    world.assert_nothing_left()


def test_tensorrt_lacks_memory(path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's own allocations fail with None and a message: others go, and it is tried once more."""
    engine = _open(path)
    engine.run(_inputs(width=64))
    make = fake.CudaEngine.create_execution_context

    def lacking(self: fake.CudaEngine, how: Any) -> Any:
        if world.trt.contexts:
            world.trt.logger.log(world.trt.ILogger.ERROR, "4096-byte allocation: out of memory")
            return None
        return make(self, how)

    monkeypatch.setattr(fake.CudaEngine, "create_execution_context", lacking)
    inputs = _inputs(width=80)
    np.testing.assert_allclose(engine.run(inputs), fake.expected(inputs), atol=1e-6)
    assert len(world.trt.contexts) == 1
    engine.close()
    world.assert_nothing_left()


def test_reasons_are_given_once(path: Path, world: World) -> None:
    """The last error, and the last three warnings, none of them twice."""
    engine = _open(path)
    world.trt.runs = False
    log, kinds = world.trt.logger.log, world.trt.ILogger
    for warning in ("first", "slow (In run at a/b.cpp:12)", "slow", "odd\n  type", "old driver"):
        log(kinds.WARNING, warning)
    log(kinds.ERROR, "the reason")
    reason = r"the reason \(its last warnings: slow; odd type; old driver\)"
    for expected in (reason, "it does not say why"):
        with pytest.raises(EngineError, match=f"TensorRT cannot run the engine: {expected}$"):
            engine.run(_inputs())
    engine.close()


def test_last_shapes_stay(path: Path, world: World) -> None:
    engine = _open(path)
    widths = [64, 80, 96, 112, 128]
    assert len(widths) == KEPT_SHAPES + 1
    for width in (*widths[:4], 64, widths[4]):
        engine.run(_inputs(width=width))
    made = world.cuda.calls.count("create_execution_context")
    assert made == len(widths)
    assert len(world.trt.contexts) == KEPT_SHAPES
    engine.run(_inputs(width=64))  # used lately
    assert world.cuda.calls.count("create_execution_context") == made
    engine.run(_inputs(width=80))  # dropped
    assert world.cuda.calls.count("create_execution_context") == made + 1
    engine.close()
    world.assert_nothing_left()


def test_little_memory(path: Path, world: World) -> None:
    """Others go, and it is tried once more; if it still lacks, it is said."""
    engine = _open(path)
    engine.run(_inputs(width=64))
    world.cuda.most_device_bytes = world.cuda.device_bytes * 4
    engine.run(_inputs(width=128))
    engine.run(_inputs(height=128, width=64))
    assert len(world.trt.contexts) < 3
    engine.close()
    world.assert_nothing_left()
    world.cuda.most_device_bytes = 1000
    inputs = _inputs(height=128, width=160)
    with Fuser(path) as fuser, pytest.raises(OutOfMemoryError, match="160x128 in a batch of 1 does not fit"):
        fuser.run(inputs["a"], inputs["b"])
    world.assert_nothing_left()


def test_batches(path: Path, world: World) -> None:
    """More pairs than the engine takes at once, and fewer."""
    engine = _open(path)
    assert engine.largest_batch == 2
    inputs = _inputs(pairs=5)
    np.testing.assert_allclose(engine.run(inputs), fake.expected(inputs), atol=1e-6)
    assert world.cuda.calls.count("create_execution_context") == 2


@pytest.mark.parametrize("size", [(64, 176), (144, 64)])
def test_sizes_beyond_the_profile(path: Path, world: World, size: tuple[int, int]) -> None:
    engine = _open(path)
    with pytest.raises(ImageError, match=r"tiny.engine: takes 64x64 to 128x160 \(height x width\), .* --min and"):
        engine.run(_inputs(1, *size))
    engine.close()
    _change(path, shapes={corner: [1, 64, 64] for corner in ("min", "opt", "max")})
    with pytest.raises(ImageError, match=r"takes 64x64 \(height"):
        _open(path).run(_inputs(1, *size))
    assert "cudaMalloc" not in world.cuda.calls


def test_threads(path: Path, world: World) -> None:
    """Each thread must choose the GPU for itself."""
    world.put(gpus=2)
    engine = _open(path, device="cuda:1")
    inputs = _inputs()
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(engine.run(inputs))) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert len(results) == 2
    assert world.cuda.devices == [1, 0, 1, 0, 1, 0]  # and back


def test_engines_in_threads(path: Path, world: World) -> None:
    """Captures of several streams at once."""
    together = threading.Barrier(4)
    results: list[bool] = []

    def work(seed: int) -> None:
        engine, inputs = _open(path), _inputs(seed=seed)
        together.wait()
        results.extend(bool(np.allclose(engine.run(inputs), fake.expected(inputs), atol=1e-6)) for _ in range(5))
        engine.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20
    world.assert_nothing_left()


def test_fuser(path: Path, world: World) -> None:
    """Without a device, an engine runs on the GPU."""
    image = np.random.default_rng(0).integers(0, 256, (70, 90), dtype=np.uint8)
    with Fuser(path) as fuser:
        assert fuser.fuse(image, image).shape == (70, 90)
        assert fuser.info["device"] == "cuda:0"
    world.assert_nothing_left()
    with pytest.raises(EngineError, match=r"tiny.engine: .engine files run on NVIDIA GPUs"):
        Fuser(path, device="cpu")


# What is wrong, what must be said.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"version": "10.3.0"}, r"was built with tensorrt 10\.3\.0, here is 10\.13\.2: install that version"),
    ({"compute_capabilities": ["8.6", "12.0"]}, r"for GPUs of compute capability 8\.6, 12\.0; cuda is A GPU, 8\.9"),
    ({"flavour": "other"}, "unknown flavour 'other'"),
    ({"engine": {"sha256": "0" * 64, "bytes": 900}}, "not the file that its manifest was written for"),
    ({"engine": {"sha256": "0" * 64, "bytes": 1000}}, "has 900 bytes, its manifest says 1000: copy"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_engines(path: Path, world: World, changes: dict[str, Any], message: str) -> None:
    _change(path, **changes)
    with pytest.raises(EngineError, match=message):
        _open(path)
    assert "deserialize_cuda_engine" not in world.cuda.calls
    world.assert_nothing_left()


def test_unreadable(path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", no)
    monkeypatch.setattr(Manifest, "read", lambda _: _manifest(b"an engine" * 100))
    with pytest.raises(EngineError, match=r"tiny.engine: cannot be read: Permission denied"):
        _open(path)
    assert not world.cuda.calls


def test_truncated(path: Path, world: World) -> None:
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(EngineError, match=r"tiny.engine: has 500 bytes, its manifest says 900"):
        _open(path)
    assert not world.cuda.calls


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"tiny.engine: has no manifest \(tiny.engine.json\) beside it: copy tiny.engine\* together"),
        ("{", "is not a readable manifest"),
        ("[]", "is no manifest of this version"),
        ('{"format": "other"}', "is no manifest of this version"),
        ('{"format": "dmfnet-fast 1", "kind": "tensorrt engine"}', "is damaged, or of another version"),
    ],
)
def test_wrong_manifests(path: Path, world: World, content: str | None, message: str) -> None:
    if content is None:
        manifest_path(path).unlink()
    else:
        manifest_path(path).write_text(content)
    with pytest.raises(EngineError, match=message):
        _open(path)
    assert not world.cuda.calls


@pytest.mark.parametrize(
    "damage",
    [
        {"shapes": {"min": [1, 64, 64], "opt": [1, 64, 64]}},
        {"shapes": {corner: [1, "64", 64] for corner in ("min", "opt", "max")}},
        {"engine": {"bytes": 900}},
        {"layers": []},
        {"precision": "int7"},
        {"compute_capabilities": [8.9]},
        {"parity": []},
        {"parity": {"A GPU": {}}},
        {"parity": {"A GPU": {**VERIFIED, "max_abs": 1.5}}},
        {"graph_parity": [{}]},
        {"layers": {}},
        {"layers": {"count": 1, "reformats": 0, "kinds": {}, "list": [{"name": "x"}]}},
        {"check": {}},
        {"largest_activation": "many"},
        {"more": 1},
    ],
)
def test_damaged_values(path: Path, damage: dict[str, Any]) -> None:
    values = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps(values | damage))
    with pytest.raises(EngineError, match=r"tiny.engine.json: is damaged, or of another version"):
        Manifest.read(path)


def test_manifest_comes_back(path: Path) -> None:
    assert Manifest.read(path) == _manifest(path.read_bytes())


def test_other_requests(path: Path, world: World) -> None:
    for options, message in (
        ({"precision": "float32"}, "its precision is float16; precision 'float32' takes another export"),
        ({"device": "cuda:3"}, "device 'cuda:3': there are 1 CUDA GPUs"),
        ({"device": "tpu"}, "device 'tpu': use cpu, cuda or cuda:N"),
    ):
        with pytest.raises(EngineError, match=message):
            _open(path, **options)
    _open(path, precision="float16").close()
    world.assert_nothing_left()


def _unverified(path: Path, error: float, config: Mapping[str, Any] = MappingProxyType({})) -> None:
    """An engine with a check pair that its image differs from by `error`."""
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 256, (1, 64, 96), dtype=np.uint8) for _ in "ab")
    interface = interface_of(config)
    fused = (fake.expected(Reference(a, b, np.empty(0, np.float32), interface).inputs) + error).astype(np.float32)
    check = {"sha256": save_check(path, Reference(a, b, fused, interface))}
    _change(path, parity={}, check=check, config=dict(config))


def test_first_opening_verifies(path: Path, world: World) -> None:
    _unverified(path, 0.0005)
    engine = _open(path)
    assert engine.info["verified"] == "yes"
    engine.close()
    parity = Manifest.read(path).parity[MODEL]
    assert parity["max_abs"] == pytest.approx(0.0005, rel=1e-2)
    assert parity["sizes"] == ["64x96"]
    # Once is enough: the check pair is not needed again.
    check_path(path).unlink()
    world.put()
    _open(path).close()
    assert "execute_async_v3" not in world.cuda.calls


@pytest.mark.parametrize("kind", ["paper's", "student"])
def test_pixels(path: Path, world: World, kind: str) -> None:
    """8-bit buffers between Fuser and the engine; what pairs share is sent when it changes."""
    _change(path, config=SMALL[kind].to_dict(), pixels=True)
    interface = interface_of(SMALL[kind].to_dict(), pixels=True)
    world.trt.names, world.trt.pixels = interface.names, True
    random = np.random.default_rng(0)
    a, b = random.integers(0, 256, (3, 64, 96), dtype=np.uint8), random.integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    with Fuser(path, keep_chroma=0.5) as fuser:
        for other in (b, b[..., 1]):
            inputs = pixel_inputs(interface, a, other, Rules(0.5))
            wanted = fake.expected_pixels(inputs)
            fused = fuser.fuse(a, other)
            assert fused.dtype == np.uint8
            np.testing.assert_array_equal(fused, wanted if other.ndim == 4 else wanted[..., 0])
        before = len(world.cuda.calls)
        fuser.fuse(a[0], b[0])
        assert world.cuda.calls[before:] == ["cudaGetDevice", "cudaGraphLaunch", "cudaStreamSynchronize"]
        fuser._rules = Rules(0.25, invention=True)
        np.testing.assert_array_equal(
            fuser.fuse(a[:1], b[:1]), fake.expected_pixels(pixel_inputs(interface, a[:1], b[:1], fuser._rules))
        )
        assert world.cuda.calls.count("create_execution_context") == 2
    world.assert_nothing_left()


def test_pixels_are_verified(path: Path, world: World) -> None:
    """With the check pair's luminances, as nearly as 8 bits show them."""
    config = SMALL["student"].to_dict()
    world.trt.names, world.trt.pixels = ("a", "b", "rules"), True
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 256, (1, 64, 96), dtype=np.uint8) for _ in "ab")
    of_engine = fake.expected_pixels(pixel_inputs(interface_of(config, pixels=True), a, b, Rules()))[..., 0]
    for error, verified in ((0.4, True), (9.0, False)):
        fused = ((of_engine + error) / 127.5 - 1).astype(np.float32)[:, None]
        check = {"sha256": save_check(path, Reference(a, b, fused, interface_of(config)))}
        _change(path, parity={}, check=check, config=config, pixels=True)
        with nullcontext() if verified else pytest.raises(EngineError, match="on this GPU its image differs"):
            _open(path).close()
        assert (MODEL in Manifest.read(path).parity) == verified
    world.assert_nothing_left()


@pytest.mark.usefixtures("world")
def test_manifests_without_pixels(path: Path) -> None:
    """Those of engines that were made before there was a choice."""
    values = json.loads(manifest_path(path).read_text())
    assert values.pop("pixels") is False
    manifest_path(path).write_text(json.dumps(values))
    engine = _open(path)
    assert not engine.takes_pixels
    assert not engine.interface.pixels
    engine.close()


@pytest.mark.parametrize("kind", ["no noise", "student"])
def test_without_noise(path: Path, world: World, kind: str) -> None:
    """Inputs of pairs alone: images and intervals, all of which are sent each time."""
    config = SMALL[kind]
    _unverified(path, 0.0005, config.to_dict())
    world.trt.names = ("a", "b", "interval")
    engine = _open(path)
    assert engine.info["verified"] == "yes"
    inputs = random_inputs(config, pairs=3)
    for _ in range(2):
        before = len(world.cuda.calls)
        np.testing.assert_allclose(engine.run(inputs), fake.expected(inputs), atol=1e-6)
    assert world.cuda.calls[before:] == ["cudaGetDevice", *["cudaGraphLaunch", "cudaStreamSynchronize"] * 2]
    engine.close()
    world.assert_nothing_left()


def test_every_kind_of_gpu_verifies(path: Path, world: World) -> None:
    _unverified(path, 0.0005)
    _change(path, parity={"Another GPU": VERIFIED}, check=Manifest.read(path).check)
    _open(path).close()
    assert "execute_async_v3" in world.cuda.calls
    assert set(Manifest.read(path).parity) == {"Another GPU", MODEL}


def test_what_cannot_be_verified_is_said(path: Path, world: World) -> None:
    _change(path, parity={})
    with pytest.warns(DMFNetWarning, match=r"tiny.engine: has not been compared with its weights"):
        engine = _open(path)
    assert engine.info["verified"] == "no"
    engine.close()
    world.assert_nothing_left()


@pytest.mark.usefixtures("world")
def test_another_model_of_gpu(path: Path) -> None:
    _change(path, device="A larger GPU")
    with pytest.warns(
        DMFNetWarning, match=f"was built on A larger GPU, here is {MODEL}: export it again for full speed"
    ):
        _open(path).close()


def test_forgotten(path: Path, world: World) -> None:
    """Who does not close gives the memory back all the same."""
    engine = _open(path)
    engine.run(_inputs())
    del engine
    world.assert_nothing_left()


def test_first_opening_refuses(path: Path, world: World) -> None:
    _unverified(path, 0.05)
    before = manifest_path(path).read_text()
    with pytest.raises(EngineError, match=r"tiny.engine: on this GPU its image differs .*error 5.0e-02 .limit"):
        _open(path)
    world.assert_nothing_left()
    assert manifest_path(path).read_text() == before


def test_verified_in_a_folder_that_cannot_be_written(
    path: Path, world: World, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache folder has it noted, for this engine, GPU and driver; what is damaged there does not count."""
    replace_ = Path.replace

    def read_only(self: Path, target: Path) -> Path:
        if target.parent == path.parent:
            raise PermissionError(13, "Permission denied")
        return replace_(self, target)

    def runs() -> int:
        world.put()
        engine = _open(path)
        assert engine.info["verified"] == "yes"
        engine.close()
        return world.cuda.calls.count("cudaGraphLaunch")

    _unverified(path, 0.0)
    monkeypatch.setattr(Path, "replace", read_only)
    assert [runs(), runs()] == [1, 0]
    assert Manifest.read(path).parity == {}
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == [path.name, f"{path.name}.check.npz", f"{path.name}.json"]
    (record,) = (cache / "dmfnet-fast").iterdir()
    for damaged in ("{", "[]", "{}", json.dumps({**VERIFIED, "max_abs": 1.5})):
        record.write_text(damaged)
        assert [runs(), runs()] == [1, 0]
    monkeypatch.setenv("DMFNET_CACHE", str(path))  # no folder
    assert [runs(), runs()] == [1, 1]


@pytest.mark.parametrize("damage", ["missing", "changed", "another"])
def test_check_pair_that_is_not(path: Path, world: World, damage: str) -> None:
    _unverified(path, 0.0)
    file = check_path(path)
    if damage == "missing":
        file.unlink()
    elif damage == "changed":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.write_bytes(b"no archive")
        _change(path, parity={}, check={"sha256": hashlib.sha256(b"no archive").hexdigest()})
    messages = {"missing": "is not beside it", "changed": "is not the file that", "another": "cannot be read"}
    with pytest.raises(EngineError, match=messages[damage]):
        _open(path)
    world.assert_nothing_left()


def _of_rtx(path: Path, world: World, **changes: Any) -> None:
    """Makes an engine and the library that runs it those of TensorRT-RTX."""
    world.put("tensorrt-rtx", "1.7.1.116")
    _change(path, **{"flavour": "tensorrt-rtx", "version": "1.7.1.116", **changes})


def _kept(folder: Path) -> list[Path]:
    return sorted((folder / "dmfnet-fast").glob("*.kernels"))


def test_rtx(path: Path, world: World, cache: Path) -> None:
    """Kernels compiled at a first run are kept in the cache folder."""
    _of_rtx(path, world)
    engine = _open(path)
    inputs = _inputs()
    np.testing.assert_allclose(engine.run(inputs), fake.expected(inputs), atol=1e-6)
    (kept,) = _kept(cache)
    assert kept.read_bytes() == b"compiled kernels"
    written = kept.stat().st_mtime_ns
    engine.run(_inputs(width=80))
    assert kept.stat().st_mtime_ns == written  # as nothing was new
    assert world.trt.read_cache is None
    engine.close()
    world.assert_nothing_left()
    _open(path).close()
    assert world.trt.read_cache == b"compiled kernels"
    world.trt.capturable = False
    engine = _open(path)
    with pytest.warns(DMFNetWarning, match="does not let it be a CUDA graph"):
        result = engine.run(inputs)
    np.testing.assert_allclose(result, fake.expected(inputs), atol=1e-6)
    np.testing.assert_allclose(engine.run(inputs), fake.expected(inputs), atol=1e-6)
    assert "cudaGraphLaunch" not in world.cuda.calls[-8:]
    engine.close()
    world.assert_nothing_left()


def test_kernels_belong_to_an_engine_a_gpu_and_a_driver(path: Path, world: World, cache: Path) -> None:
    """None is read for another, and none replaces another's."""
    for number, (content, multiprocessors, driver) in enumerate(
        [(b"one", 16, 12060), (b"another", 16, 12060), (b"one", 8, 12060), (b"one", 16, 13000)], 1
    ):
        path.write_bytes(content)
        for _ in range(2):
            _of_rtx(path, world, parity=dict.fromkeys((MODEL, "A GPU, 8 multiprocessors, 8 GiB"), VERIFIED))
            world.cuda._multiprocessors, world.cuda.driver = multiprocessors, driver
            _fuse_once(path)
        assert world.trt.read_cache == b"compiled kernels"  # by the second of both
        assert len(_kept(cache)) == number


def test_without_a_cache_folder(path: Path, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("DMFNET_CACHE", str(in_the_way))
    _of_rtx(path, world)
    _fuse_once(path)
    world.assert_nothing_left()


def test_there_is_no_driver() -> None:
    """The real cuda-python, which is to say so."""
    if int(fake.runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match=r"device 'cuda': CUDA cannot do cudaGetDeviceCount: .*check the NVIDIA"):
        Cuda("cuda")


@pytest.mark.usefixtures("world")
def test_there_is_no_driver_for_old_bindings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-python 12.6 raises where later ones give a status."""

    def absent() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(sys.modules["cuda.bindings.runtime"], "cudaGetDeviceCount", absent, raising=False)
    with pytest.raises(EngineError, match=r"device 'cuda': .*Failed to dlopen libcuda.so.1; check the NVIDIA driver"):
        _open(path)


def test_no_library(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"tensorrt is not installed: pip install 'dmfnet-fast\[tensorrt\]'"):
        _open(path)
    _change(path, flavour="tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dmfnet-fast\[tensorrt-rtx\]'"):
        _open(path)


@pytest.mark.usefixtures("world")
def test_no_cuda_python(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingExtraError, match=r"cuda.bindings.runtime is not installed"):
        _open(path)


def test_import_takes_nothing() -> None:
    """On a machine without CUDA, TensorRT or cuda-python."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['cuda', 'tensorrt', 'tensorrt_rtx', 'torch']));"
        "import dmfnet_fast.engines.tensorrt"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_manifest_is_not_written_half(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = manifest_path(path).read_text()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="cannot be written: No space left"):
        replace(_manifest(path.read_bytes()), device="another").write(path)
    monkeypatch.undo()
    assert manifest_path(path).read_text() == before
