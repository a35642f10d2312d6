"""Every transfer syntax that gdcm decodes, on the files that pydicom and pydicom-data bring."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("gdcm", reason="needs the extra dicom")

from numpy.typing import NDArray

from dmfnet_fast.errors import VolumeError
from dmfnet_fast.volumes import decoding
from dmfnet_fast.volumes.decoding import DecodingError, DecodingTimeout, Decompressor
from dmfnet_fast.volumes.dicom_file import DicomFile, quiet, read_file
from dmfnet_fast.volumes.frames import Frame
from dmfnet_fast.volumes.pixels import read_frame, read_frames
from dmfnet_fast.volumes.reading import read_volume

SYNTAXES = {
    "1.2.840.10008.1.2": "implicit",
    "1.2.840.10008.1.2.1": "explicit",
    "1.2.840.10008.1.2.2": "big endian",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.70": "JPEG lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
# Files made to be odd: their compressed image contradicts the header.
ODD = ("JPEG2000-embedded-sequence-delimiter.dcm",)
# Compressed files, each with the file that holds the same image uncompressed, and the largest difference allowed.
PAIRS = (
    ("MR_small_RLE.dcm", "MR_small.dcm", 0),
    ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
    ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
    ("MR_small_bigendian.dcm", "MR_small.dcm", 0),
    ("emri_small_RLE.dcm", "emri_small.dcm", 0),
    ("emri_small_jpeg_ls_lossless.dcm", "emri_small.dcm", 0),
    ("emri_small_jpeg_2k_lossless.dcm", "emri_small.dcm", 0),
    ("emri_small_big_endian.dcm", "emri_small.dcm", 0),
    ("SC_rgb_gdcm_KY.dcm", "SC_rgb.dcm", 0),
    ("SC_rgb_rle.dcm", "SC_rgb.dcm", 0),
    ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb.dcm", 0),
    ("693_J2KR.dcm", "693_UNCR.dcm", 0),
    ("693_J2KI.dcm", "693_UNCI.dcm", 4),
)  # fmt: skip


def _folders() -> Iterator[Path]:
    yield Path(pydicom.__file__).parent / "data" / "test_files"
    try:
        import data_store
    except ModuleNotFoundError:
        return
    yield Path(data_store.__file__).parent / "data"


FILES = {path.name: path for folder in _folders() for path in sorted(folder.rglob("*")) if path.is_file()}


def frame(file: DicomFile, index: int = 0) -> Frame:
    return Frame(file, index, np.zeros(3), np.eye(3)[:2], (1.0, 1.0), None, 1.0, 0.0, "HU")


def pixels(path: Path) -> NDArray[np.float32]:
    with quiet():
        return read_frame(frame(read_file(path)))


@pytest.fixture(scope="module")
def by_syntax() -> dict[str, list[DicomFile]]:
    result: dict[str, list[DicomFile]] = {}
    for path in FILES.values():
        try:
            with quiet():
                file = read_file(path)
        except VolumeError:
            continue
        if file.pixels is not None:
            result.setdefault(file.pixels.syntax, []).append(file)
    return result


@pytest.mark.parametrize("syntax", SYNTAXES, ids=SYNTAXES.values())
def test_syntax(syntax: str, by_syntax: dict[str, list[DicomFile]]) -> None:
    """All files of a syntax are decoded, and as pydicom has them where it has no more than their values."""
    if syntax not in by_syntax:
        pytest.skip("no file of this syntax: pydicom-data is not installed")
    compared = 0
    files = [file for file in by_syntax[syntax] if file.path.name not in ODD]
    with quiet():
        for place, image in read_frames([frame(file) for file in files]):
            file = files[place]
            assert file.pixels is not None
            assert image.shape[:2] == (file.pixels.rows, file.pixels.columns)
            if file.pixels.photometric != "MONOCHROME2":
                continue
            data = pydicom.dcmread(file.path, force=True)
            if "PixelData" in data and "TransferSyntaxUID" in data.file_meta:
                expected = data.pixel_array
                np.testing.assert_array_equal(image, expected if file.pixels.frames == 1 else expected[0])
                compared += 1
    assert compared or syntax == "1.2.840.10008.1.2.4.50", "the JPEG files are in color"


@pytest.mark.parametrize(("compressed", "plain", "difference"), PAIRS)
def test_same_image(compressed: str, plain: str, difference: int) -> None:
    if compressed not in FILES or plain not in FILES:
        pytest.skip("pydicom-data is not installed")
    np.testing.assert_allclose(
        pixels(FILES[compressed]).astype(np.float32), pixels(FILES[plain]).astype(np.float32), atol=difference
    )


def test_jpeg_extended_is_refused() -> None:
    with pytest.raises(VolumeError, match=r"JPEG Extended.* is not read; decompress it first, for example with"):
        pixels(FILES["JPEG-lossy.dcm"])


def test_decoder_that_ends_is_an_error() -> None:
    """gdcm ends its process on some damaged images; here an unknown syntax does."""
    with Decompressor("1.2.3") as decompressor, pytest.raises(DecodingError, match="the decoder ended"):
        decompressor.decode(b"x" * 2**20, {})


def test_decoder_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, and the message says what to do; the limit is shorter than a process takes to start."""
    monkeypatch.setattr(decoding, "SECONDS", 0.01)
    with pytest.raises(VolumeError, match=r"more than 0.01 seconds to decompress.* for example with gdcmconv") as error:
        pixels(FILES["MR_small_jp2klossless.dcm"])
    assert "MR_small_jp2klossless.dcm" in str(error.value)


def test_decoder_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with Decompressor("1.2.840.10008.1.2.4.90") as decompressor:
        with pytest.raises(DecodingError, match=r"^\w+$"):
            decompressor.decode(b"x", {})
        os.kill(decompressor._process.pid, signal.SIGSTOP)
        monkeypatch.setattr(decoding, "SECONDS", 0.1)
        with pytest.raises(DecodingTimeout):
            decompressor.decode(b"x", {})


@pytest.mark.parametrize(("name", "lossy"), [("693_J2KI.dcm", True), ("693_J2KR.dcm", False)])
def test_what_lost_something_is_known(name: str, lossy: bool, tmp_path: Path) -> None:
    """By its syntax, if the file does not say it."""
    if name not in FILES:
        pytest.skip("pydicom-data is not installed")
    data = pydicom.dcmread(FILES[name])
    data.pop("LossyImageCompression", None)
    data.save_as(tmp_path / name)
    link = read_volume(tmp_path / name).link
    assert link is not None
    assert link.lossy == lossy
