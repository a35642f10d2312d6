"""Methods: parsing of command-line arguments, and images fused by other software."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmfnet_fast.errors import EngineError, ImageError
from dmfnet_fast.evaluation.dataset import Scene, find_pairs
from dmfnet_fast.evaluation.methods import AsJPEG, Folder, Trivial, open_methods, parse_engine
from dmfnet_fast.images.io import write_image


@pytest.fixture
def scene(data: Path) -> Scene:
    return find_pairs(data, "test")[0][0].read()


def _renamed(scene: Scene, name: str, modality: str | None = None) -> Scene:
    return replace(scene, pair=replace(scene.pair, name=name, modality=modality or scene.pair.modality))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("turbo", ("turbo", "turbo", "auto")),
        ("turbo@float32", ("turbo float32", "turbo", "float32")),
        ("ours=runs/x.onnx@bfloat16", ("ours", "runs/x.onnx", "bfloat16")),
        ("me@home/x.onnx", ("x", "me@home/x.onnx", "auto")),
    ],
)
def test_parse_engine(text: str, expected: tuple[str, str, str]) -> None:
    assert parse_engine(text) == expected


def test_unknown_precision(tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    file.touch()
    for engine in ("nano", f"ours={file}"):
        with pytest.raises(EngineError, match=r"@fp16: precision 'fp16': use auto, float32, .* or "):
            parse_engine(f"{engine}@fp16")


@pytest.mark.parametrize(
    ("name", "depth"), [("001.png", np.uint8), ("001.tif", np.uint16), ("001.tif", np.float32), ("001.jpg", np.uint8)]
)
def test_fused_images_of_any_depth(name: str, depth: Any, scene: Scene, tmp_path: Path) -> None:
    """An image of another depth than b's has the full range of its depth."""
    image = scene.grays[0]
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[depth]
    (tmp_path / "CT-MRI").mkdir()
    write_image(tmp_path / "CT-MRI" / name, (image * np.float64(scale)).astype(depth))
    fused = Folder("x", tmp_path).fuse(scene)
    assert np.abs(fused.astype(int) - image).max() <= (8 if name.endswith("jpg") else 0)


def test_files_are_matched_by_name(scene: Scene, tmp_path: Path) -> None:
    """Names may contain dots and decomposed accents. Ambiguous names and files of other modalities are errors."""
    (tmp_path / "CT-MRI").mkdir()
    for name in ("1.png", "1.5.png", unicodedata.normalize("NFD", "é.png")):
        write_image(tmp_path / "CT-MRI" / name, np.full((64, 64), len(name), np.uint8))
    folder = Folder("x", tmp_path)
    for name, value in (("1", 5), ("1.5", 7), ("é", 6)):
        assert (folder.fuse(_renamed(scene, name=name)) == value).all()
    with pytest.raises(ImageError, match=r"PET-MRI/1\.\*: no such image"):
        folder.fuse(_renamed(scene, modality="PET-MRI", name="1"))
    write_image(tmp_path / "CT-MRI" / "1.bmp", np.zeros((64, 64), np.uint8))
    with pytest.raises(ImageError, match=r"1\.bmp: 1\.png has the same name; keep one of them"):
        Folder("x", tmp_path).fuse(_renamed(scene, name="1"))


def test_folder_name_may_contain_an_equals_sign(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1e-3"
    folder.mkdir()
    with open_methods([], [str(folder), f"rate={folder}"], False, None, None) as methods:
        assert [method.label for method in methods] == ["lr=1e-3", "rate"]


def test_jpeg_changes_an_image_slightly() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    after = AsJPEG(Trivial("maximum"), 95).compress(image)
    assert 0 < np.abs(after.astype(int) - image).mean() < 12
