"""A format is a row: what reads, pairs, fuses and lists images finds it in the tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmfnet_fast import DMFNetWarning, Fuser, ImageError, OutputError
from dmfnet_fast.evaluation.dataset import Pair
from dmfnet_fast.evaluation.methods import Folder
from dmfnet_fast.images import formats
from dmfnet_fast.images.color import range_of
from dmfnet_fast.images.formats.base import LoadedImage, Pixels, Reader, Writer
from dmfnet_fast.images.io import check_suffix, load_image, read_image, to_8_bit, write_image
from dmfnet_fast.images.pairing import pair_folders
from dmfnet_fast.phantom import Phantom, make_phantom
from tests.images.formats.samples import GRAY8, GRAY16, RGB8, RGB16
from train.data import load_pairs

MAGIC = b"RAW!"


def _read(content: bytes, name: str) -> LoadedImage | None:
    """16-bit gray of 64 columns that says which values mean black and white."""
    if not content.startswith(MAGIC):
        return None
    low, high, *pixels = np.frombuffer(content[len(MAGIC) :], "<u2")
    return LoadedImage(np.array(pixels, np.uint16).reshape(-1, 64), name, (float(low), float(high)))


def _write(path: Path, pixels: Pixels) -> None:
    path.write_bytes(MAGIC + np.array([0, 4095], "<u2").tobytes() + pixels.astype("<u2").tobytes())


@pytest.fixture
def raw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "READERS", (*formats.READERS, Reader("RAW", (".raw.z", ".raw"), _read)))
    monkeypatch.setattr(formats, "WRITERS", (*formats.WRITERS, Writer("RAW", (".raw",), _write, gray16=True)))


@pytest.mark.usefixtures("raw")
def test_a_row_is_read_and_written(tmp_path: Path) -> None:
    pixels = GRAY16[:, :64] // 16
    write_image(tmp_path / "x.RAW", pixels)
    image = load_image(tmp_path / "x.RAW")
    assert np.array_equal(image.pixels, pixels)
    assert (image.name, image.values) == (str(tmp_path / "x.RAW"), (0, 4095))
    # By content, whatever the suffix.
    (tmp_path / "x.RAW").rename(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), pixels)


@pytest.mark.usefixtures("raw")
def test_messages_list_what_the_tables_hold(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"x: is not an image that can be read; use PNG, JPEG, TIFF, BMP or RAW$"):
        read_image(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(ImageError, match="is DICOM, which is a volume"):
        read_image(tmp_path / "x")
    with pytest.raises(ImageError, match=r"give folders of PNG, JPEG, TIFF, BMP or RAW files \(subfolders"):
        pair_folders(tmp_path, tmp_path)
    with pytest.raises(OutputError, match=r"use one of \.png, \.tif, \.tiff, \.bmp, \.jpg, \.jpeg, \.raw$"):
        check_suffix(tmp_path / "x.gif")


def test_messages_without_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"use PNG, JPEG, TIFF or BMP$"):
        read_image(tmp_path / "x")
    with pytest.raises(OutputError, match=r"as gray \.tif only \(in a folder: --format tif\)$"):
        write_image(tmp_path / "x.png", np.zeros((64, 64)))


@pytest.mark.usefixtures("raw")
def test_folders_pair_by_the_suffixes_of_readers(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, names in ((a, ("1.PNG", "2.raw.z", "3.txt")), (b, ("1.raw", "2.tiff", "3.gif"))):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    found = pair_folders(a, b)
    assert found.pairs == [("1", a / "1.PNG", b / "1.raw"), ("2", a / "2.raw.z", b / "2.tiff")]
    assert found.ignored == 2


@pytest.mark.usefixtures("raw")
def test_the_range_that_a_file_states_is_used(fuser: Fuser, phantom: Phantom, tmp_path: Path) -> None:
    """It comes before what would be inferred, and after what a user states."""
    a, b = tmp_path / "a.raw", tmp_path / "b.raw"
    mri, ct = (image.astype(np.uint16)[:, :64] * 4 for image in (phantom.mri, phantom.ct))
    _write(a, mri)
    _write(b, ct)
    stated, other = ((0.0, 4095.0), (0.0, 4095.0)), ((0.0, 1020.0), (0.0, 1020.0))
    expected = {ranges: fuser.fuse(mri, ct, range=ranges) for ranges in (stated, other)}
    assert not np.array_equal(expected[stated], expected[other])
    assert np.array_equal(np.asarray(fuser.fuse(a, b)), expected[stated])
    assert np.array_equal(np.asarray(fuser.fuse(a, b, range=other)), expected[other])
    scene = Pair("CT-MRI", ("MRI", "CT"), "a", a, b, None, other[1]).read()
    assert [source.values for source in scene.sources] == [stated[0], other[1]]


@pytest.mark.usefixtures("raw")
def test_the_range_that_a_file_states_is_used_in_training_and_evaluation(tmp_path: Path) -> None:
    head = make_phantom(0, 64)
    deep = {kind: image.astype(np.uint16) * 8 for kind, image in (("MRI", head.mri), ("CT", head.ct))}
    for kind, image in deep.items():
        folder = tmp_path / "train" / "CT-MRI" / kind
        folder.mkdir(parents=True)
        _write(folder / "1.raw", image)
    mri, ct = (to_8_bit(image, (0, 4095)) for image in deep.values())
    (pair,) = load_pairs(tmp_path, 64)
    assert np.array_equal(pair.planes[:2], [mri, ct])
    files = [tmp_path / "train" / "CT-MRI" / kind / "1.raw" for kind in deep]
    scene = Pair("CT-MRI", ("MRI", "CT"), "1", files[0], files[1], None, (0, 2040)).read()
    (tmp_path / "fused" / "CT-MRI").mkdir(parents=True)
    _write(tmp_path / "fused" / "CT-MRI" / "1.raw", deep["CT"])
    assert np.array_equal(Folder("x", tmp_path / "fused").fuse(scene), ct)


def test_ranges_of_loaded_images() -> None:
    deep = LoadedImage(GRAY16, "x", (10.0, 20.0))
    assert range_of(deep, None) == (10, 20)
    assert range_of(deep, (1, 2)) == (1, 2)
    assert range_of(LoadedImage(GRAY16, "x"), None) == (0, 65535)
    with pytest.warns(DMFNetWarning, match="x: is 8-bit"):
        assert range_of(LoadedImage(GRAY8, "x"), (1, 2)) == (0, 255)


@pytest.mark.parametrize("writer", formats.WRITERS, ids=lambda writer: writer.name)
def test_writers_hold_what_they_say(writer: Writer, tmp_path: Path) -> None:
    """All that a row claims comes back as it was; JPEG's 8 bits nearly so."""
    for pixels in (GRAY8, RGB8, GRAY16, RGB16, GRAY16.astype(np.float32)):
        if writer.holds(pixels):
            for suffix in writer.suffixes:
                write_image(tmp_path / f"x{suffix}", pixels)
                read = read_image(tmp_path / f"x{suffix}")
                assert (read.dtype, read.shape) == (pixels.dtype, pixels.shape)
                if writer.name != "JPEG":
                    assert np.array_equal(read, pixels)
    assert not writer.holds(RGB16.astype(np.float32))


def test_no_suffix_is_claimed_twice() -> None:
    for table in (formats.READERS, formats.WRITERS):
        claimed = formats.suffixes(table)
        assert len(claimed) == len(set(claimed))
        assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in claimed)
