"""Fuser: results have the type of the input and are reproducible; invalid input gives one clear error."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from dmfnet_fast import DMFNetWarning, EngineError, Fuser, ImageError, MissingExtraError, OutOfMemoryError
from dmfnet_fast import errors as errors_module
from dmfnet_fast import fuser as fuser_module
from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.diffusion.noise import fusion_noise
from dmfnet_fast.engines import SHIPPED_WEIGHTS
from dmfnet_fast.engines.base import Engine
from dmfnet_fast.fuser import ImageLike
from dmfnet_fast.images.io import write_image
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.model import Student, StudentConfig, load_model, save_model
from dmfnet_fast.phantom import Phantom, make_phantom


def test_run_is_the_network(fuser: Fuser, tiny_weights: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 2, 1, 64, 80)).astype(np.float32)
    noise = rng.standard_normal((3, 2, 64, 80)).astype(np.float32)
    with torch.no_grad():
        expected = load_model(tiny_weights)(*map(torch.from_numpy, (a, b, noise)))
    # channels-last convolutions sum in another order
    np.testing.assert_allclose(fuser.run(a, b, noise=noise), expected, rtol=0, atol=1e-5)


def test_default_noise_depends_on_the_seed(tiny_weights: Path) -> None:
    a, b = np.zeros((2, 1, 1, 64, 64), np.float32)
    for seed in (0, 7):
        with Fuser(tiny_weights, seed) as fuser:
            assert np.array_equal(fuser.run(a, b), fuser.run(a, b, noise=fusion_noise(seed, 64, 64)))
    with Fuser(tiny_weights, 0) as first, Fuser(tiny_weights, 7) as second:
        assert not np.array_equal(first.run(a, b), second.run(a, b))


def test_bit_for_bit(tiny_weights: Path, phantom: Phantom) -> None:
    with Fuser(tiny_weights) as first, Fuser(tiny_weights) as second:
        result = first.fuse(phantom.mri, phantom.pet)
        assert np.array_equal(result, first.fuse(phantom.mri, phantom.pet))
        assert np.array_equal(result, second.fuse(phantom.mri, phantom.pet))


def test_shipped_weights() -> None:
    assert SHIPPED_WEIGHTS.exists()
    phantom = make_phantom(1, 64)
    with Fuser() as fuser:
        fused = fuser.fuse(phantom.mri, phantom.ct)
    # The first term of the published training objective is the distance to the brighter source.
    brighter = np.maximum(phantom.mri, phantom.ct).astype(float)
    assert np.corrcoef(fused.ravel(), brighter.ravel())[0, 1] > 0.95
    assert np.abs(fused - brighter).mean() < 16
    assert fused[:4].max() < 8, "the air stays black"


@pytest.fixture(scope="module")
def student_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_model(Student(StudentConfig(16, 2)).eval(), path)
    return path


def test_run_of_a_network_with_an_interval(student_weights: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 2, 1, 64, 80)).astype(np.float32)
    interval = np.sort(rng.uniform(-1, 1, (2, 2, 64, 80)), axis=1).astype(np.float32)
    with torch.no_grad():
        model = load_model(student_weights)
        expected = model(*map(torch.from_numpy, (a, b)), interval=torch.from_numpy(interval))
        wide = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1).expand(2, 2, 64, 80)
        free = model(*map(torch.from_numpy, (a, b)), interval=wide)
    with Fuser(student_weights, precision="float32") as fuser:
        result = fuser.run(a, b, interval=interval)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
        assert (result >= interval[:, :1] - 1e-6).all()
        np.testing.assert_allclose(fuser.run(a, b), free, rtol=0, atol=1e-5)
        with pytest.raises(ImageError, match=r"noise: student\.safetensors does not take this input"):
            fuser.run(a, b, noise=np.zeros((1, 2, 64, 80), np.float32))
        with pytest.raises(ImageError, match=r"interval: must be a float array of shape \(2, 2, 64, 80\)"):
            fuser.run(a, b, interval=interval[:, :1])


@pytest.mark.parametrize("weights", ["tiny_weights", "student_weights"])
def test_rules_hold(weights: str, phantom: Phantom, request: pytest.FixtureRequest) -> None:
    """A hot spot keeps its color on white, with networks that take the interval and with those that do not."""
    hot = np.zeros((64, 64, 3), np.uint8)
    hot[20:40, 20:40] = 255, 255, 0
    white = np.full((64, 64), 255, np.uint8)
    path = request.getfixturevalue(weights)
    with Fuser(path) as fuser, Fuser(path, keep_chroma=0, allow_invention=True) as free:
        assert fuser.fuse(white, hot)[22:38, 22:38, 2].max() < 70
        mri = phantom.mri
        assert not np.array_equal(fuser.fuse(mri, phantom.pet), free.fuse(mri, phantom.pet))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("color", [False, True])
def test_arrays_come_back_in_kind(fuser: Fuser, phantom: Phantom, dtype: Any, color: bool) -> None:
    scale = {np.uint8: 1, np.uint16: 257}.get(dtype, 1 / 255)
    b = (phantom.pet if color else phantom.ct) * np.float64(scale)
    result = fuser.fuse(phantom.mri, b.astype(dtype))
    assert result.dtype == dtype
    assert result.shape == b.shape
    reference = fuser.fuse(phantom.mri, phantom.pet if color else phantom.ct)
    # For 8-bit images, b's luminance, the fused luminance and the channels are rounded.
    assert np.abs(result / scale - reference).max() <= 2


def test_pil_and_paths(fuser: Fuser, phantom: Phantom, pair: tuple[Path, Path]) -> None:
    arrays = fuser.fuse(phantom.mri, phantom.pet)
    images = fuser.fuse(Image.fromarray(phantom.mri), Image.fromarray(phantom.pet))
    paths = fuser.fuse(pair[0], str(pair[1]))
    mixed = fuser.fuse(pair[0], phantom.pet)
    assert isinstance(images, Image.Image)
    assert isinstance(paths, Image.Image)
    for result in (images, paths, mixed):
        assert np.array_equal(np.asarray(result), arrays)


def test_16_bit_path_gives_16_bit_pil(fuser: Fuser, phantom: Phantom, tmp_path: Path) -> None:
    write_image(tmp_path / "ct.png", phantom.ct.astype(np.uint16) * 257)
    result = fuser.fuse(phantom.mri, tmp_path / "ct.png")
    assert result.mode == "I;16"
    assert np.abs(np.asarray(result) / 257 - fuser.fuse(phantom.mri, phantom.ct)).max() <= 1.5


def test_12_bit_data(fuser: Fuser, phantom: Phantom) -> None:
    ct = np.rint(phantom.ct * (4000 / 255)).astype(np.uint16)
    stated = fuser.fuse(phantom.mri, ct, range=(None, (0, 4095)))
    with pytest.warns(DMFNetWarning, match=r"0\.\.4095"):
        guessed = fuser.fuse(phantom.mri, ct)
    assert np.array_equal(stated, guessed)
    assert stated.dtype == np.uint16
    assert 2000 < stated.max() <= 4095, "the result spans b's own range and is not nearly black"
    both = fuser.fuse(phantom.mri.astype(np.uint16) * 16, ct, range=(0, 4095))
    assert np.abs(both.astype(int) - stated).max() < 100


def test_unused_range_warns(fuser: Fuser, phantom: Phantom) -> None:
    with pytest.warns(DMFNetWarning, match="range is not used"):
        fuser.fuse(phantom.mri, phantom.ct, range=(0, 100))


@pytest.mark.parametrize("stated", [5, (1,), (0, 1, 2), ("a", "b"), (None, 5), ((0, 1), 5)])
def test_malformed_range(fuser: Fuser, phantom: Phantom, stated: Any) -> None:
    with pytest.raises(ImageError, match="range"):
        fuser.fuse(phantom.mri, phantom.ct, range=stated)


def test_batches(fuser: Fuser) -> None:
    heads = [make_phantom(seed, 64) for seed in range(5)]
    stack = fuser.fuse(np.stack([h.mri for h in heads]), np.stack([h.pet for h in heads]))
    assert isinstance(stack, np.ndarray)
    assert stack.shape == (5, 64, 64, 3)
    listed = fuser.fuse([h.mri for h in heads], [h.pet for h in heads])
    assert isinstance(listed, list)
    assert np.array_equal(np.stack(listed), stack)
    for head, result in zip(heads, listed, strict=True):
        # Another batch shape may change the order of summation, and with it the last of 8 bits.
        assert np.abs(fuser.fuse(head.mri, head.pet).astype(int) - result).max() <= 1


def test_list_of_sizes_and_kinds(fuser: Fuser, pair: tuple[Path, Path]) -> None:
    small, large = make_phantom(0, 64), make_phantom(0, 80)
    results = fuser.fuse([large.mri, pair[0], small.mri], [large.ct, pair[1], Image.fromarray(small.ct)])
    assert [np.asarray(r).shape for r in results] == [(80, 80), (64, 64, 3), (64, 64)]
    assert [type(r) is np.ndarray for r in results] == [True, False, False]


@pytest.mark.parametrize(("height", "width"), [(65, 64), (79, 97), (100, 64), (111, 127)])
def test_other_sizes_by_reflection_and_crop(fuser: Fuser, height: int, width: int) -> None:
    phantom = make_phantom(2, 128)
    mri, ct = phantom.mri[:height, :width], phantom.ct[:height, :width]
    result = fuser.fuse(mri, ct)
    assert result.shape == (height, width)
    margins = [((-n % 16) // 2, -n % 16 - (-n % 16) // 2) for n in (height, width)]
    padded = fuser.fuse(*(np.pad(x, margins, mode="reflect") for x in (mri, ct)))
    inside = padded[margins[0][0] : margins[0][0] + height, margins[1][0] : margins[1][0] + width]
    assert np.array_equal(result, inside)


def test_threads_share_a_fuser(fuser: Fuser, phantom: Phantom) -> None:
    expected = fuser.fuse(phantom.mri, phantom.ct)
    results: list[np.ndarray] = []
    workers = [threading.Thread(target=lambda: results.append(fuser.fuse(phantom.mri, phantom.ct))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(np.array_equal(result, expected) for result in results)


def test_swapped_modalities_warn(fuser: Fuser, phantom: Phantom) -> None:
    with pytest.warns(DMFNetWarning, match="swapped"):
        fuser.fuse(phantom.pet, phantom.mri)


GRAY = np.zeros((64, 64), np.uint8)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (GRAY, np.zeros((64, 80), np.uint8), "a is 64x64, b is 80x64"),
        (np.zeros((63, 64), np.uint8), np.zeros((63, 64), np.uint8), "a: is 64x63; the smallest size is 64x64"),
        (GRAY, np.full((64, 64), np.nan), "b: holds NaN"),
        (np.full((64, 64), np.inf, np.float32), GRAY, "a: holds NaN or infinity"),
        (np.full((64, 64), 255.0), GRAY, "a: float values from 255 to 255"),
        (np.zeros(64, np.uint8), GRAY, r"a: has shape \(64,\)"),
        (GRAY, np.zeros((64, 64, 4), np.uint8), r"b: has shape \(64, 64, 4\)"),
        (GRAY, np.zeros((64, 64, 1), np.uint8), r"b: has shape \(64, 64, 1\)"),
        (np.zeros((1, 1, 64, 64, 3), np.uint8), GRAY, "shape"),
        (GRAY.astype(np.int16), GRAY, r"a: has type int16; use .* image\.astype\(np\.float32\), with range="),
        (GRAY, np.zeros((3, 64, 80), np.uint8), r"b has shape \(3, 64, 80\): channels come last, np.moveaxis\("),
        (np.zeros((1, 64, 80), np.uint8), GRAY, r"a has shape \(1, 64, 80\): use image\[0\]\): give two images"),
        (np.zeros((2, 3, 64, 80), np.uint8), GRAY[None], r"a\[0\]: has shape \(3, 64, 80\).*: channels come last"),
        (GRAY.astype(complex), GRAY, "a: has type complex128"),
        (GRAY, np.ma.masked_array(GRAY), "b: is a masked array"),
        (GRAY, "a\0b.png", "no possible file name"),
        (GRAY, 5, "b: is a int"),
        (GRAY, None, "b: is a NoneType"),
        (GRAY, "missing.png", "missing.png: no such file"),
        ([GRAY], GRAY, "one is a single image and the other a batch"),
        ([GRAY], [GRAY, GRAY], "a has 1 images, b has 2"),
        ([], [], "empty"),
        ([GRAY, GRAY[:60]], [GRAY, GRAY[:60]], r"a\[1\]: is 64x60"),
    ],
)
def test_invalid_images(fuser: Fuser, a: Any, b: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        fuser.fuse(a, b)


LUMINANCE = np.zeros((1, 1, 64, 64), np.float32)


@pytest.mark.parametrize(
    ("a", "b", "noise", "message"),
    [
        (LUMINANCE[0], LUMINANCE, None, r"a: has shape \(1, 64, 64\)"),
        (LUMINANCE, LUMINANCE.astype(np.uint8), None, "b: must be a float"),
        (LUMINANCE, LUMINANCE + 255, None, r"lie in \[-1, 1\]"),
        (LUMINANCE, LUMINANCE * np.nan, None, "finite"),
        (LUMINANCE[..., :48], LUMINANCE[..., :48], None, "multiples of 16"),
        (np.zeros((1, 1, 72, 64), np.float32), LUMINANCE, None, "64x72"),
        (LUMINANCE, np.zeros((2, 1, 64, 64), np.float32), None, "must be equal"),
        (LUMINANCE, LUMINANCE, np.zeros((3, 2, 64, 80)), r"noise: .*\(3, 2, 64, 64\)"),
        (LUMINANCE, LUMINANCE, np.full((3, 2, 64, 64), "x"), "noise: must be a float array"),
        (LUMINANCE, LUMINANCE, np.full((3, 2, 64, 64), np.nan), "noise: holds NaN"),
    ],
)
def test_invalid_luminances(fuser: Fuser, a: Any, b: Any, noise: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        fuser.run(a, b, noise=noise)


def test_invalid_engines(tmp_path: Path, tiny_weights: Path) -> None:
    corrupt = tmp_path / "corrupt.safetensors"
    corrupt.write_bytes(tiny_weights.read_bytes()[:5000])
    for name, message in (
        ("missing.safetensors", "no such engine file"),
        (corrupt.name, "damaged"),
        ("x.pth", "dmfnet-convert"),
        ("x.png", "is an image, not an engine"),
        ("x.dat", "unknown kind"),
        (".", "is a folder"),
    ):
        path = tmp_path / name
        if path.suffix in (".pth", ".png", ".dat"):
            path.write_bytes(b"x")
        with pytest.raises(EngineError, match=message):
            Fuser(path)


@pytest.mark.parametrize(
    "arguments",
    [{"seed": -1}, {"seed": 0.5}, {"seed": "0"}, {"threads": 0}, {"threads": 1.5}, {"device": "tpu"},
     {"device": "meta"}, {"device": 3}, {"engine": 3}, {"engine": ""}, {"keep_chroma": 1.5},
     {"keep_chroma": None}],
)  # fmt: skip
def test_invalid_arguments(tiny_weights: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=next(iter(arguments))):
        Fuser(**{"engine": tiny_weights, **arguments})


def test_foreign_byte_order_and_strides(fuser: Fuser, phantom: Phantom) -> None:
    ct = phantom.ct.astype(np.uint16) * 257
    expected = fuser.fuse(phantom.mri, ct)
    assert np.array_equal(fuser.fuse(phantom.mri, ct.astype(">u2")), expected)
    doubled = np.repeat(np.repeat(ct, 2, axis=0), 2, axis=1)
    assert np.array_equal(fuser.fuse(phantom.mri, doubled[::2, ::2]), expected)


def test_engine_does_not_change_with_its_file(tiny_weights: Path, phantom: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "copy.safetensors"
    path.write_bytes(tiny_weights.read_bytes())
    with Fuser(path) as fuser:
        before = fuser.fuse(phantom.mri, phantom.ct)
        with path.open("r+b") as file:
            file.truncate(10)
        assert np.array_equal(fuser.fuse(phantom.mri, phantom.ct), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tiny_weights: Path) -> None:
    with pytest.raises(EngineError, match="sees 0 CUDA GPUs"):
        Fuser(tiny_weights, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_agrees_with_cpu(tiny_weights: Path, fuser: Fuser, phantom: Phantom) -> None:
    with Fuser(tiny_weights, device="cuda") as gpu:
        difference = gpu.fuse(phantom.mri, phantom.pet).astype(int) - fuser.fuse(phantom.mri, phantom.pet)
    assert np.abs(difference).max() <= 1


class TakesPixels(Engine):
    """Fuses 8-bit images itself, into the negative of b, so that its results are recognizable."""

    takes_pixels = True
    largest_batch = 2
    interface = Interface(timesteps=0, interval=True)
    info: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.runs = 0

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        self.runs += 1
        return inputs["a"]

    def fuse_pixels(self, a: np.ndarray, b: np.ndarray, rules: Rules, seed: int) -> np.ndarray:
        self.calls.append((a, b, rules, seed))
        return 255 - b

    def close(self) -> None: ...


@pytest.fixture
def pixel_fuser(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Fuser, TakesPixels]:
    engine = TakesPixels()
    monkeypatch.setattr(fuser_module, "open_engine", lambda *_: engine)
    return Fuser(tiny_weights, 7, keep_chroma=0.5, allow_invention=True), engine


def test_pixels_to_the_engine(pixel_fuser: tuple[Fuser, TakesPixels]) -> None:
    """The engine gets 8-bit pairs unchanged, except that a is converted to gray, in batches of one shape."""
    fuser, engine = pixel_fuser
    heads = [make_phantom(seed, 64) for seed in range(3)]
    mri, pet = [head.mri for head in heads], [head.pet for head in heads]
    given: list[ImageLike] = [*mri, Image.fromarray(mri[0]), np.stack([mri[1]] * 3, -1)]
    others = [*pet, heads[0].ct, pet[1]]
    results = fuser.fuse(given, others)
    assert [len(a) for a, *_ in engine.calls] == [2, 2, 1], "two batches of PET pairs, then the CT pair"
    seen = [image for a, *_ in engine.calls for image in a]
    assert all(np.array_equal(image, one) for image, one in zip(seen, [*mri, mri[1], mri[0]], strict=True))
    assert all(image.dtype == np.uint8 for a, b, *_ in engine.calls for image in (a, b))
    assert {call[2:] for call in engine.calls} == {(Rules(0.5, True), 7)}
    assert all(np.array_equal(result, 255 - other) for result, other in zip(results, others, strict=True))
    assert engine.runs == 0
    image = fuser.fuse(mri[0], Image.fromarray(pet[0]))
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), 255 - pet[0])


@pytest.mark.parametrize(
    ("height", "width", "dtype_a", "dtype_b"),
    [
        (72, 64, np.uint8, np.uint8),  # not a multiple of 16
        (64, 80, np.uint16, np.uint8),
        (64, 80, np.uint8, np.uint16),
        (64, 80, np.float32, np.uint8),
        (64, 80, np.uint8, np.float64),
    ],
)
def test_pairs_that_the_engine_does_not_take_as_pixels(
    pixel_fuser: tuple[Fuser, TakesPixels], height: int, width: int, dtype_a: Any, dtype_b: Any
) -> None:
    fuser, engine = pixel_fuser
    scale = {np.uint8: 1, np.uint16: 257}
    head = make_phantom(0, 96)
    a, b = (
        (image[:height, :width] * np.float64(scale.get(dtype, 1 / 255))).astype(dtype)
        for image, dtype in ((head.mri, dtype_a), (head.ct, dtype_b))
    )
    assert not np.array_equal(fuser.fuse(a, b), 255 - b)
    assert engine.calls == []
    assert engine.runs == 1


def test_out_of_memory_for_pixels(
    pixel_fuser: tuple[Fuser, TakesPixels], phantom: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    fuser, engine = pixel_fuser
    monkeypatch.setattr(engine, "fuse_pixels", exhausted)
    with pytest.raises(OutOfMemoryError, match="64x64 in a batch of 2"):
        fuser.fuse([phantom.mri] * 2, [phantom.pet] * 2)


def test_closed(tiny_weights: Path, phantom: Phantom) -> None:
    fuser = Fuser(tiny_weights)
    fuser.close()
    fuser.close()
    with pytest.raises(EngineError, match="closed"):
        fuser.fuse(phantom.mri, phantom.ct)


def test_threads(tiny_weights: Path, phantom: Phantom) -> None:
    before = torch.get_num_threads()
    try:
        with Fuser(tiny_weights, threads=1) as fuser:
            assert torch.get_num_threads() == 1
            assert fuser.fuse(phantom.mri, phantom.ct).shape == (64, 64)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
              torch.OutOfMemoryError("CUDA out of memory.")],
)  # fmt: skip
def test_out_of_memory(tiny_weights: Path, phantom: Phantom, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise error

    fuser = Fuser(tiny_weights)
    monkeypatch.setattr(fuser._engine, "run", exhausted)
    with pytest.raises(OutOfMemoryError, match="64x64 in a batch of 1"):
        fuser.fuse(phantom.mri, phantom.ct)


def test_missing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"torch is not installed: pip install 'dmfnet-fast\[torch\]'"):
        errors_module.require("torch", extra="torch")
