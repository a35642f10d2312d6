"""The PyTorch engine on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dmfnet_fast import Fuser
from dmfnet_fast.engines import SHIPPED_WEIGHTS, torch_engine
from dmfnet_fast.engines.arithmetic import arithmetic
from dmfnet_fast.errors import EngineError
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.model import preset, save_model
from dmfnet_fast.precision import FloatPrecision
from tests.synthetic_weights import SMALL, model_by_rule, random_inputs, run_model


def test_precisions() -> None:
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, 1, 64, 64)).astype(np.float32)
    fused = {}
    for precision in ("float32", "bfloat16"):
        with Fuser(SHIPPED_WEIGHTS, precision=precision) as fuser:
            assert fuser.info["precision"] == precision
            fused[precision] = fuser.run(a, b)
            assert np.array_equal(fuser.run(a[1:2], b[1:2]), fused[precision][1:2])
    difference = np.abs(fused["float32"] - fused["bfloat16"])
    assert 0 < difference.mean() < 0.01
    assert difference.max() < 0.1


@pytest.mark.parametrize("native", [False, True])
def test_auto(native: bool, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "has_native_bfloat16", lambda _: native)
    with Fuser(tiny_weights) as fuser:
        assert fuser.info["precision"] == ("bfloat16" if native else "float32")


def test_float16_needs_a_gpu(tiny_weights: Path) -> None:
    with pytest.raises(EngineError, match="precision 'float16': on a CPU use auto, float32 or bfloat16"):
        Fuser(tiny_weights, precision="float16")


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, NDArray[np.float32]], Any]:
    """Weights of a small network of each interface, inputs for it, and what it makes of them as trained."""
    config = SMALL[request.param]
    model = model_by_rule(config)
    save_model(model, tmp_path / "small.safetensors")
    inputs = random_inputs(config, pairs=2)
    return tmp_path / "small.safetensors", inputs, run_model(model, inputs)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interfaces(small: tuple[Path, dict[str, NDArray[np.float32]], Any], precision: FloatPrecision) -> None:
    path, inputs, expected = small
    engine = torch_engine.TorchEngine(path, "cpu", precision, None)
    assert engine.interface.names == tuple(inputs)
    fused = engine.run(inputs)
    assert np.abs(fused - expected).max() <= {"float32": 2e-5, "bfloat16": 0.1}[precision]
    assert np.array_equal(engine.run(inputs), fused)
    if "interval" in inputs:
        lowest, highest = np.split(inputs["interval"], 2, axis=1)
        assert ((lowest <= fused) & (fused <= highest)).all()
    alone = {name: array if name == "noise" else array[1:] for name, array in inputs.items()}
    assert np.array_equal(engine.run(alone), fused[1:]), "pairs of a batch do not depend on each other"
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run(inputs)


def test_interfaces_as_on_a_gpu(
    small: tuple[Path, dict[str, NDArray[np.float32]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, inputs, expected = small
    engine = _as_on_a_gpu(path, monkeypatch)
    assert np.abs(engine.run(inputs) - expected).max() <= 2e-5
    assert Stub.made == [(2, 64, 96)]


class Stub:
    """A captured fusion without a GPU: runs the network as it is."""

    made: ClassVar[list[tuple[int, int, int]]] = []
    all: ClassVar[list[Stub]] = []
    too_large: ClassVar[int] = 10**9
    alive: bool
    stream: object

    def __init__(
        self, network: Any, shapes: dict[str, tuple[int, ...]], device: object, stream: object, dtype: torch.dtype
    ) -> None:
        del device
        assert dtype == (torch.float32 if len(shapes["a"]) == 4 else torch.uint8)
        pairs, *_, height, width = shapes["a"]
        assert not torch.backends.cudnn.benchmark
        cudnn: Any = torch.backends.cudnn
        assert cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
        if height * width >= self.too_large and any(stub.alive for stub in self.all):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert stream not in [stub.stream for stub in self.all if stub.alive], "two graphs on one stream"
        self.network, self.shapes, self.stream, self.alive = network, shapes, stream, True
        self.dtype = dtype
        self.all.append(self)
        self.made.append((pairs, height, width))

    def run(self, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        assert {name: array.shape for name, array in inputs.items()} == self.shapes
        assert {torch.tensor(array).dtype for array in inputs.values()} == {self.dtype}
        return self.network(**{name: torch.tensor(array) for name, array in inputs.items()}).numpy()


@pytest.fixture
def as_on_a_gpu(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> torch_engine.TorchEngine:
    return _as_on_a_gpu(tiny_weights, monkeypatch)


def _as_on_a_gpu(path: Path, monkeypatch: pytest.MonkeyPatch) -> torch_engine.TorchEngine:
    """An engine that does what it does on a GPU, but for the GPU."""
    monkeypatch.setattr(torch_engine, "CapturedFusion", Stub)
    monkeypatch.setattr(torch_engine, "KEPT_GRAPHS", 4)
    monkeypatch.setattr(Stub, "made", [])
    monkeypatch.setattr(Stub, "all", [])
    drop = torch_engine.TorchEngine._drop

    def dropped(engine: torch_engine.TorchEngine, key: Hashable) -> None:
        stub: Any = engine._sizes[key]
        stub.alive = False
        drop(engine, key)

    monkeypatch.setattr(torch_engine.TorchEngine, "_drop", dropped)
    engine = torch_engine.TorchEngine(path, "cpu", "float32", None)
    engine._on_cpu = False
    engine._free = [f"stream {n}" for n in range(torch_engine.KEPT_GRAPHS)]
    return engine


def images(count: int, height: int, width: int) -> dict[str, NDArray[np.float32]]:
    return random_inputs(preset("tiny"), count, height, width)


def test_every_size_is_captured_once_and_few_are_kept(as_on_a_gpu: torch_engine.TorchEngine) -> None:
    widths = [64, 80, 96, 112]
    for width in [*widths, *widths]:
        as_on_a_gpu.run(images(1, 64, width))
    assert Stub.made == [(1, 64, width) for width in widths]
    as_on_a_gpu.run(images(1, 64, 64))  # used last of all
    as_on_a_gpu.run(images(1, 64, 128))  # takes the place of 80
    as_on_a_gpu.run(images(1, 64, 64))
    assert len(Stub.made) == 5
    as_on_a_gpu.run(images(1, 64, 80))
    assert Stub.made[5:] == [(1, 64, 80)]
    assert len(as_on_a_gpu._sizes) == torch_engine.KEPT_GRAPHS


def test_a_size_that_needs_the_memory_of_the_others(
    as_on_a_gpu: torch_engine.TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stub, "too_large", 128 * 128)
    for width in (64, 80):
        as_on_a_gpu.run(images(1, 64, width))
    as_on_a_gpu.run(images(1, 128, 128))
    assert list(as_on_a_gpu._sizes) == [(1, 128, 128)]
    assert len(as_on_a_gpu._free) == torch_engine.KEPT_GRAPHS - 1


def test_large_images_go_through_a_gpu_one_by_one(
    as_on_a_gpu: torch_engine.TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "PIXELS_AT_ONCE", 2 * 64 * 64)
    inputs = images(3, 64, 64)
    together = as_on_a_gpu.run(inputs)
    assert Stub.made == [(2, 64, 64), (1, 64, 64)]
    as_on_a_gpu.run(images(2, 96, 96))
    assert Stub.made[2:] == [(1, 96, 96)]
    as_on_a_gpu._on_cpu = True
    np.testing.assert_allclose(as_on_a_gpu.run(inputs), together, rtol=0, atol=1e-5)


def eight_bit(count: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Gray images and color images."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (count, height, width, 1)), rng.integers(0, 256, (count, height, width, 3))
    return a[..., 0].astype(np.uint8), b.astype(np.uint8)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("seed", [0, 9])
def test_pixels_to_pixels(
    color: bool, seed: int, small: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `Fuser` makes of the same engine without them, pair by pair."""
    path, *_ = small
    a, b = eight_bit(3, 64, 80)
    b = b if color else b[..., 0]
    rules = Rules(0.5)
    with Fuser(path, seed, precision="float32", keep_chroma=0.5) as fuser:
        assert not fuser._engine.takes_pixels, "a CPU has no use for it"
        expected = fuser.fuse(a, b)
    engine = _as_on_a_gpu(path, monkeypatch)
    monkeypatch.setattr(torch_engine, "PIXELS_AT_ONCE", 64 * 80)
    fused = engine.fuse_pixels(a, b, rules, seed)
    assert fused.dtype == np.uint8
    assert np.array_equal(fused, expected)
    assert Stub.made == [(1, 64, 80)], "the same graph for every pair"


def test_pixels_are_captured_by_size_kind_rules_and_seed(as_on_a_gpu: torch_engine.TorchEngine) -> None:
    a, b = eight_bit(1, 64, 64)
    rules = Rules()
    calls = [(a, b, rules, 0), (a, b[..., 0], rules, 0), (a, b, Rules(0.1), 0), (a, b, rules, 1)]
    results = [as_on_a_gpu.fuse_pixels(*call) for call in calls]
    assert len(Stub.made) == 4
    assert all(not np.array_equal(results[0], other) for other in results[1:])
    for call, result in zip(calls, results, strict=True):
        assert np.array_equal(as_on_a_gpu.fuse_pixels(*call), result)
    assert len(Stub.made) == 4
    as_on_a_gpu.run(images(1, 64, 64))  # takes the place of the first
    assert len(as_on_a_gpu._sizes) == torch_engine.KEPT_GRAPHS
    as_on_a_gpu.fuse_pixels(*calls[0])
    assert len(Stub.made) == 6


def test_many_pixels_go_through_a_gpu_in_parts(
    as_on_a_gpu: torch_engine.TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "PIXELS_AT_ONCE", 2 * 64 * 64)
    a, b = eight_bit(3, 64, 64)
    together = as_on_a_gpu.fuse_pixels(a, b, Rules(), 0)
    assert Stub.made == [(2, 64, 64), (1, 64, 64)]
    alone = as_on_a_gpu.fuse_pixels(a[2:], b[2:], Rules(), 0)
    assert np.array_equal(together[2:], alone)


def test_pixels_of_a_closed_engine(as_on_a_gpu: torch_engine.TorchEngine) -> None:
    as_on_a_gpu._on_cpu = True  # there is no GPU's memory to give back
    as_on_a_gpu.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        as_on_a_gpu.fuse_pixels(*eight_bit(1, 64, 64), Rules(), 0)


def test_kernels_are_told(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Fuser(tiny_weights) as fuser:
        assert fuser.info["kernels"] == "none"
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert torch_engine._kernels(gpu) == (False, "none (compute capability below 8.0)")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 7))
    usable, told = torch_engine._kernels(gpu)
    assert usable
    assert told.startswith("triton 3.")
    monkeypatch.setattr(torch_engine, "find_spec", lambda _: None)
    assert torch_engine._kernels(gpu) == (False, "none (triton is not installed)")


@pytest.mark.parametrize("name", ["backends.fp32_precision", "backends.cudnn.conv.fp32_precision"])
def test_whatever_precision_the_program_has_set(name: str, tiny_weights: Path) -> None:
    """PyTorch refuses to mix its settings of TF32; the engine uses those that can always be read."""
    owner: Any = torch
    *path, attribute = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    before = getattr(owner, attribute)
    try:
        setattr(owner, attribute, "ieee")
        with arithmetic(), Fuser(tiny_weights, precision="float32") as fuser:
            given = images(1, 64, 64)
            assert fuser.run(given["a"], given["b"]).shape == (1, 1, 64, 64)
        assert getattr(owner, attribute) == "ieee"
    finally:
        setattr(owner, attribute, before)


def _float32_settings() -> dict[str, Any]:
    """The newer settings of float32 products and the older ones; "raises" where PyTorch finds a contradiction."""
    backends: Any = torch.backends
    found: dict[str, Any] = {}
    for name, read in {
        "conv": lambda: backends.cudnn.conv.fp32_precision,
        "rnn": lambda: backends.cudnn.rnn.fp32_precision,
        "matmul": lambda: backends.cuda.matmul.fp32_precision,
        "cpu": lambda: backends.mkldnn.matmul.fp32_precision,
        "cudnn.allow_tf32": lambda: backends.cudnn.allow_tf32,
        "matmul.allow_tf32": lambda: backends.cuda.matmul.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision,
    }.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "raises"
    return found


@pytest.fixture
def float32_settings() -> Iterator[None]:
    """Sets PyTorch's defaults again."""
    yield
    backends: Any = torch.backends
    backends.fp32_precision = backends.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"


BACKENDS: Any = torch.backends


def _set(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


@pytest.mark.usefixtures("float32_settings")
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize(
    "program",
    [
        lambda: None,
        _set(BACKENDS, "fp32_precision", "tf32"),
        _set(BACKENDS.cudnn, "allow_tf32", False),
        _set(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),  # from here on PyTorch refuses some reads
        _set(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
        lambda: torch.set_float32_matmul_precision("medium"),
    ],
    ids=["defaults", "everything TF32", "cuDNN exact", "convolutions exact", "products TF32", "medium"],
)
def test_settings_agree_and_are_restored(program: Callable[[], None], tf32: bool) -> None:
    """Inside, PyTorch's older and newer settings say the same, in every thread and where PyTorch compiles."""
    program()
    before = _float32_settings()
    seen: list[dict[str, Any]] = []
    with arithmetic(tf32=tf32):
        thread = threading.Thread(target=lambda: seen.append(_float32_settings()))
        thread.start()
        thread.join()
        compiled = torch.compile(lambda x: x @ x + 1, backend="eager", fullgraph=True)
        assert torch.equal(compiled(torch.eye(2)), torch.eye(2) + 1)
        seen.append(_float32_settings())
    precision = "tf32" if tf32 else "ieee"
    expected = dict.fromkeys(("conv", "rnn", "matmul", "cpu"), precision)
    older = {"cudnn.allow_tf32": tf32, "matmul.allow_tf32": tf32}
    assert seen == [expected | older | {"float32_matmul_precision": "high" if tf32 else "highest"}] * 2
    assert _float32_settings() == before


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@gpu
def test_a_graph_keeps_what_it_reads() -> None:
    """Memory that was freed under a graph would be given to others."""
    a, b = eight_bit(1, 64, 64)
    with Fuser(SHIPPED_WEIGHTS, device="cuda") as fuser:
        first = fuser.fuse(a, b)
        torch.cuda.empty_cache()
        others = [torch.full((2**n,), float("nan"), device="cuda") for n in range(4, 22) for _ in range(8)]
        assert np.array_equal(fuser.fuse(a, b), first)
        del others


@gpu
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_on_a_gpu(precision: FloatPrecision) -> None:
    """The same image as on the CPU, for several sizes and batches, and the same bits twice."""
    largest, mean = {"float32": (1e-4, 1e-5), "float16": (0.015, 0.0015), "bfloat16": (0.1, 0.01)}[precision]
    with (
        Fuser(SHIPPED_WEIGHTS, precision="float32") as slow,
        Fuser(SHIPPED_WEIGHTS, device="cuda", precision=precision) as fast,
    ):
        for count, height, width in ((1, 64, 64), (5, 80, 64), (1, 256, 256), (1, 64, 64)):
            a, b, *_ = images(count, height, width).values()
            fused = fast.run(a, b)
            difference = np.abs(fused - slow.run(a, b))
            assert difference.max() <= largest
            assert difference.mean() <= mean
            assert np.array_equal(fast.run(a, b), fused)


@gpu
@pytest.mark.parametrize("color", [False, True])
def test_pixels_on_a_gpu(color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images as with the rules on the CPU, around the same network."""
    a, b = eight_bit(2, 80, 64)
    b = b if color else b[..., 0]
    with Fuser(SHIPPED_WEIGHTS, device="cuda") as fuser:
        fused = fuser.fuse(a, b)
        monkeypatch.setattr(fuser._engine, "takes_pixels", False)
        assert np.array_equal(fuser.fuse(a, b), fused)


@gpu
def test_gpu_memory_is_given_back() -> None:
    before = torch.cuda.memory_reserved()
    with Fuser(SHIPPED_WEIGHTS, device="cuda") as fuser:
        given = images(1, 256, 256)
        fuser.run(given["a"], given["b"])
        assert torch.cuda.memory_reserved() > before
    assert torch.cuda.memory_reserved() <= before
