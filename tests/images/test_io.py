"""Every kind of file is read at its full depth, and bad ones are named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from dmfnet_fast import DMFNetWarning, ImageError, OutputError
from dmfnet_fast.images.io import read_image, to_pil, write_image

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (64, 80), np.uint8)
RGB8 = RNG.integers(0, 256, (64, 80, 3), np.uint8)
GRAY16 = RNG.integers(0, 65536, (64, 80), np.uint16)
RGB16 = RNG.integers(0, 65536, (64, 80, 3), np.uint16)


def tiff16(path: Path, pixels: np.ndarray, order: str, orientation: int = 1, planes: int = 1) -> Path:
    """An uncompressed 16-bit RGB TIFF in either byte order (TIFF 6.0), which Pillow cannot write."""
    height, width, _ = pixels.shape
    data = pixels.astype(f"{order}u2").tobytes()
    short, long = 3, 4
    entries = [
        (256, long, 1, width), (257, long, 1, height), (258, short, 3, None), (259, short, 1, 1),
        (262, short, 1, 2), (273, long, 1, 8), (274, short, 1, orientation), (277, short, 1, 3),
        (278, long, 1, height), (279, long, 1, len(data)), (284, short, 1, planes),
    ]  # fmt: skip
    directory = 8 + len(data)
    depths = directory + 2 + 12 * len(entries) + 4
    packed = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        packed += struct.pack(f"{order}HHI", tag, kind, count)
        if value is None:
            packed += struct.pack(f"{order}I", depths)
        else:
            packed += struct.pack(f"{order}HH", value, 0) if kind == short else struct.pack(f"{order}I", value)
    packed += struct.pack(f"{order}I", 0) + struct.pack(f"{order}HHH", 16, 16, 16)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(mark + struct.pack(f"{order}I", directory) + data + packed)
    return path


def png16_alpha(path: Path, pixels: np.ndarray, color_type: int) -> Path:
    """A 16-bit PNG with alpha, color type 6 (RGBA) or 4 (gray and alpha)."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp"])
@pytest.mark.parametrize("pixels", [GRAY8, RGB8], ids=["gray", "rgb"])
def test_8_bit_round_trip(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    write_image(tmp_path / f"x{suffix}", pixels)
    assert np.array_equal(read_image(tmp_path / f"x{suffix}"), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gray_round_trip(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"x{suffix}", GRAY16)
    read = read_image(tmp_path / f"x{suffix}")
    assert read.dtype == np.uint16
    assert np.array_equal(read, GRAY16)


def test_16_bit_color_png_round_trip(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", RGB16)
    read = read_image(tmp_path / "x.png")
    assert read.dtype == np.uint16
    assert np.array_equal(read, RGB16)
    # An independent reader agrees about the upper bytes.
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), RGB16 >> 8)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_color_tiff(tmp_path: Path, order: str) -> None:
    assert np.array_equal(read_image(tiff16(tmp_path / "x.tif", RGB16, order)), RGB16)


def test_16_bit_color_tiff_upright(tmp_path: Path) -> None:
    read = read_image(tiff16(tmp_path / "x.tif", RGB16, "<", orientation=6))
    assert np.array_equal(read, np.rot90(RGB16, -1))


def test_16_bit_separate_planes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="separate planes"):
        read_image(tiff16(tmp_path / "x.tif", RGB16, "<", planes=2))


@pytest.mark.parametrize("pixels", [GRAY8, GRAY16], ids=["8", "16"])
def test_tiff_where_white_is_zero(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.tif", tiffinfo={262: 0})
    # Pillow inverts 8-bit samples when it writes them, and does not touch 16-bit ones.
    stored = 255 - pixels if pixels.dtype == np.uint8 else pixels
    assert stored.tobytes() in (tmp_path / "x.tif").read_bytes()
    assert np.array_equal(read_image(tmp_path / "x.tif"), np.iinfo(pixels.dtype).max - stored)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_transparent_color(tmp_path: Path, mode: str) -> None:
    pixels = np.full((64, 64), 200, np.uint8)
    pixels[:, :32] = 90
    Image.fromarray(pixels).convert(mode).save(tmp_path / "x.png", transparency=200 if mode == "L" else (200,) * 3)
    read = read_image(tmp_path / "x.png")
    assert not read[:, 32:].any()
    assert (read[:, :32] == 90).all()


def test_transparent_value_of_16_and_1_bits(tmp_path: Path) -> None:
    pixels = np.full((64, 64), 13621, np.uint16)
    pixels[:8] = 500
    Image.fromarray(pixels).save(tmp_path / "x.png", transparency=13621)
    assert np.array_equal(read_image(tmp_path / "x.png"), np.where(pixels == 500, 500, 0))
    Image.fromarray(GRAY8 > 127).save(tmp_path / "y.png", transparency=255)
    with Image.open(tmp_path / "y.png") as image:
        assert image.info["transparency"] == 255
    assert not read_image(tmp_path / "y.png").any()


def test_16_bits_a_pixel_bmp(tmp_path: Path) -> None:
    """RGB565: 16 bits a pixel, not a sample."""
    header = struct.pack("<2sIHHI", b"BM", 14 + 40 + 12 + 64 * 64 * 2, 0, 0, 66)
    info = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 16, 3, 64 * 64 * 2, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    (tmp_path / "x.bmp").write_bytes(header + info + masks + struct.pack("<H", 0xF800) * (64 * 64))
    assert (read_image(tmp_path / "x.bmp") == (255, 0, 0)).all()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns before it fails
def test_damaged_directory(tmp_path: Path) -> None:
    """A next-directory offset into nowhere made Pillow raise what it does not announce."""
    content = bytearray(tiff16(tmp_path / "x.tif", RGB16, "<").read_bytes())
    directory = struct.unpack_from("<I", content, 4)[0]
    after = directory + 2 + 12 * struct.unpack_from("<H", content, directory)[0]
    for offset in (directory + 2, 8, len(content) - 3):
        struct.pack_into("<I", content, after, offset)
        (tmp_path / "x.tif").write_bytes(content)
        with pytest.raises(ImageError, match=r"damaged|pages"):
            read_image(tmp_path / "x.tif")


def test_16_bit_alpha(tmp_path: Path) -> None:
    alpha = np.full((64, 80, 1), 65535, np.uint16)
    alpha[:8] = 0
    read = read_image(png16_alpha(tmp_path / "x.png", np.dstack([RGB16, alpha]), 6))
    assert np.array_equal(read[8:], RGB16[8:])
    assert not read[:8].any()


def test_16_bit_gray_and_alpha_is_refused(tmp_path: Path) -> None:
    path = png16_alpha(tmp_path / "x.png", np.dstack([GRAY16, GRAY16]), 4)
    with pytest.raises(ImageError, match="would lose depth"):
        read_image(path)


def test_float_tiff_round_trip(tmp_path: Path) -> None:
    pixels = RNG.random((64, 80), np.float32)
    write_image(tmp_path / "x.tif", pixels)
    assert np.array_equal(read_image(tmp_path / "x.tif"), pixels)
    with pytest.raises(OutputError, match=r"\.tif only"):
        write_image(tmp_path / "x.png", pixels)


@pytest.mark.parametrize("pixels", [GRAY16, RGB16], ids=["gray", "rgb"])
def test_lost_depth_is_said(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.warns(DMFNetWarning, match="written as 8-bit"):
        write_image(tmp_path / "x.bmp", pixels // 16, (0, 4095))
    assert np.array_equal(read_image(tmp_path / "x.bmp"), np.rint(pixels // 16 / 4095 * 255))


def test_16_bit_color_pil_spans_its_range() -> None:
    with pytest.warns(DMFNetWarning, match="8-bit RGB"):
        image = to_pil(RGB16 // 16, (0, 4095))
    assert np.asarray(image).max() == 255


def test_jpeg_keeps_full_chroma(tmp_path: Path) -> None:
    write_image(tmp_path / "x.jpg", RGB8)
    with Image.open(tmp_path / "x.jpg") as image:
        assert isinstance(image, JpegImageFile)
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


def test_rgba_over_black(tmp_path: Path) -> None:
    alpha = np.full((64, 80, 1), 255, np.uint8)
    alpha[:, :40] = 0
    Image.fromarray(np.dstack([RGB8, alpha])).save(tmp_path / "x.png")
    read = read_image(tmp_path / "x.png")
    assert np.array_equal(read[:, 40:], RGB8[:, 40:])
    assert not read[:, :40].any()


def test_gray_and_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([GRAY8, np.full_like(GRAY8, 255)])).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), GRAY8)


def test_palettes(tmp_path: Path) -> None:
    colors = Image.fromarray(RGB8).quantize(16)
    colors.save(tmp_path / "colors.png")
    assert np.array_equal(read_image(tmp_path / "colors.png"), np.asarray(colors.convert("RGB")))
    gray = Image.fromarray(GRAY8).convert("P")
    gray.save(tmp_path / "gray.png")
    assert np.array_equal(read_image(tmp_path / "gray.png"), GRAY8)
    colors.save(tmp_path / "transparent.png", transparency=0)
    hidden = np.asarray(colors) == 0
    assert not read_image(tmp_path / "transparent.png")[hidden].any()


def test_1_bit(tmp_path: Path) -> None:
    Image.fromarray(GRAY8 > 127).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), np.where(GRAY8 > 127, 255, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    image = np.zeros((64, 80), np.uint8)
    image[:32, :40] = 200
    # How the pixels lie in the file when the viewer has to undo the orientation (EXIF 2.32, tag 0x0112).
    stored = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: image.T, 6: np.rot90(image, 1), 7: image[::-1, ::-1].T, 8: np.rot90(image, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"x{suffix}", exif=exif)
    read = read_image(tmp_path / f"x{suffix}").astype(int)
    assert read.shape == image.shape
    assert np.abs(read - image).mean() < 3


def test_unreadable_files(tmp_path: Path) -> None:
    write_image(tmp_path / "good.png", RGB16)
    good = (tmp_path / "good.png").read_bytes()
    write_image(tmp_path / "good.jpg", RGB8)
    contents = {
        "empty.png": (b"", "is empty"),
        "text.png": (b"not an image at all", "is not an image"),
        "truncated.png": (good[: len(good) // 2], "truncated or damaged"),
        "truncated.jpg": ((tmp_path / "good.jpg").read_bytes()[:900], "truncated or damaged"),
        "header.png": (good[:20], "is not an image|truncated or damaged"),
        "scan.dcm": (b"\0" * 128 + b"DICM" + b"\0" * 99, "is DICOM"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=message) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


def test_truncated_8_bit_png(tmp_path: Path) -> None:
    write_image(tmp_path / "x.png", GRAY8)
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_image(tmp_path / "x.png")


def test_several_pages(tmp_path: Path) -> None:
    pages = [Image.fromarray(GRAY8)] * 3
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="3 pages"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(("low", "high", "fits"), [(0, 4095, True), (-1000, 3000, False)])
def test_32_bit_integers(tmp_path: Path, low: int, high: int, fits: bool) -> None:
    pixels = np.linspace(low, high, 64 * 64).reshape(64, 64).astype(np.int32)
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    if fits:
        assert np.array_equal(read_image(tmp_path / "x.tif"), pixels)
    else:
        with pytest.raises(ImageError, match="-1000 to 3000"):
            read_image(tmp_path / "x.tif")


def test_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, message in (
        (tmp_path / "x.xyz", "unknown image format"),
        (tmp_path / "x", "unknown image format"),
        (tmp_path / "missing" / "x.png", "does not exist"),
        (tmp_path / "file" / "x.png", "does not exist|cannot be written"),
    ):
        with pytest.raises(OutputError, match=message):
            write_image(path, GRAY8)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
