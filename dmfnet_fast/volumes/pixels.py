"""Pixels of DICOM files, one frame at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import VolumeError, require
from dmfnet_fast.volumes.decoding import DecodingTimeout, Decompressor
from dmfnet_fast.volumes.dicom_file import PLAIN_SYNTAXES, DicomFile, PixelFormat, open_stream
from dmfnet_fast.volumes.elements import damage
from dmfnet_fast.volumes.frames import Frame

_JPEG_EXTENDED, _RLE = "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.5"


def read_frames(frames: Sequence[Frame]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Decode frames, each file once, in the order in which files keep them.

    Yields:
        The frame's index in `frames`, and its (rows, columns) float32 values, rescaled, or (rows, columns, 3) uint8.

    Raises:
        VolumeError: a frame cannot be decoded.
    """
    by_file: dict[Path, dict[int, int]] = {}
    for place, frame in enumerate(frames):
        by_file.setdefault(frame.file.path, {})[frame.index] = place
    with ExitStack() as opened:
        decompressors: dict[str, Decompressor] = {}
        for places in by_file.values():
            first = frames[next(iter(places.values()))]
            file, syntax = first.file, first.pixels.syntax
            if syntax not in (*PLAIN_SYNTAXES, _RLE) and syntax not in decompressors:
                _decoder(file.path, first.pixels)
                decompressors[syntax] = opened.enter_context(Decompressor(syntax))
            for index, stored in _stored(file, sorted(places), decompressors.get(syntax)):
                yield places[index], _finished(frames[places[index]], stored)


def read_frame(frame: Frame) -> NDArray[Any]:
    """One frame as `read_frames` yields it."""
    return dict(read_frames([frame]))[0]


def _stored(
    file: DicomFile, wanted: Sequence[int], decompressor: Decompressor | None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Stored values of some frames, (rows, columns[, 3])."""
    pixels = file.pixels
    assert pixels is not None
    decoder, options = _decoder(file.path, pixels), _options(pixels)
    with open_stream(file.path) as stream:
        for index, buffer in _buffers(file, pixels, stream, wanted):
            with _damage(file.path, index, pixels):
                if decompressor is not None:
                    image = _decompressed(decompressor, buffer, options, file.path)
                else:
                    image, _ = decoder.as_array(buffer, **options)
            yield index, image


def _decompressed(decompressor: Decompressor, frame: bytes, options: dict[str, Any], path: Path) -> NDArray[Any]:
    try:
        return decompressor.decode(frame, options)
    except DecodingTimeout as error:
        raise VolumeError(
            f"{path}: takes {error} to decompress: it may be damaged; decompress it first, for example with gdcmconv"
        ) from error


def _damage(path: Path, index: int, pixels: PixelFormat) -> AbstractContextManager[None]:
    """`elements.damage` that names the frame."""
    frame = f"frame {index + 1}" if pixels.frames > 1 else "its image"
    return damage(path, f"{frame} is truncated or damaged: it cannot be decompressed")


def _decoder(path: Path, pixels: PixelFormat) -> Any:
    require("gdcm", "dicom")
    uid = require("pydicom.uid", "dicom").UID(pixels.syntax)
    decoders = require("pydicom.pixels", "dicom")
    try:
        decoder = decoders.get_decoder(uid)
        available = decoder.is_available
    except NotImplementedError:
        available = False
    extended = pixels.syntax == _JPEG_EXTENDED and pixels.bits_stored > 8
    if not available or extended:
        name = uid.name if uid.is_valid else "damaged or unknown"
        raise VolumeError(
            f"{path}: its compression ({name}) is not read; decompress it first, for example with gdcmconv"
        )
    return decoder


def _options(pixels: PixelFormat) -> dict[str, Any]:
    """One frame in pydicom's words. The decoder is named, so that results do not depend on what else is installed."""
    plugin = "" if pixels.syntax in PLAIN_SYNTAXES else "pydicom" if pixels.syntax == _RLE else "gdcm"
    return {
        "decoding_plugin": plugin,
        "rows": pixels.rows,
        "columns": pixels.columns,
        "number_of_frames": 1,
        "samples_per_pixel": pixels.samples,
        "photometric_interpretation": pixels.photometric,
        "bits_allocated": pixels.bits_allocated,
        "bits_stored": pixels.bits_stored,
        "pixel_representation": int(pixels.signed),
        "planar_configuration": pixels.planar,
        "pixel_keyword": "PixelData",
        "pixel_vr": pixels.vr,
    }


def _buffers(
    file: DicomFile, pixels: PixelFormat, stream: BinaryIO, wanted: Sequence[int]
) -> Iterator[tuple[int, bytes]]:
    """The stored bytes of some frames, encapsulated where they are compressed."""
    if pixels.syntax in PLAIN_SYNTAXES:
        yield from _plain_buffers(pixels, stream, wanted)
        return
    path = file.path
    encaps = require("pydicom.encaps", "dicom")
    offsets, lengths = (file.header.get(f"ExtendedOffsetTable{kind}") for kind in ("", "Lengths"))
    stream.seek(pixels.offset)
    iterator = encaps.generate_frames(
        stream, number_of_frames=pixels.frames, extended_offsets=(offsets, lengths) if offsets and lengths else None
    )
    for found in range(max(wanted) + 1):
        with _damage(path, found, pixels):
            frame = next(iterator, None)
        if frame is None:
            raise VolumeError(f"{path}: holds {found} of its {pixels.frames} frame(s); copy or export it again")
        if found in wanted:
            _check_codestream(path, frame, pixels)
            yield found, encaps.encapsulate([frame])


def _plain_buffers(pixels: PixelFormat, stream: BinaryIO, wanted: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    samples = 2 if pixels.photometric == "YBR_FULL_422" else pixels.samples
    bits = pixels.rows * pixels.columns * samples * pixels.bits_allocated
    for index in wanted:
        # Frames of one bit a pixel need not begin at a byte.
        start, extra = divmod(bits * index, 8)
        stream.seek(pixels.offset + start)
        count = (extra + bits + 7) // 8
        # With the byte that pads an odd length: where bytes are swapped in pairs, it comes before the last one.
        buffer = stream.read(count + count % 2)
        if extra or bits % 8:
            unpacked = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")[extra : extra + bits]
            buffer = np.packbits(unpacked, bitorder="little").tobytes()
        yield index, buffer + b"\0" * (len(buffer) % 2)


def _check_codestream(path: Path, frame: bytes, pixels: PixelFormat) -> None:
    """Compare the size in a compressed image with the header's: decoders allocate what the image says."""
    size = _codestream_size(frame)
    if size is not None and size != (pixels.columns, pixels.rows):
        raise VolumeError(
            f"{path}: claims {pixels.columns}x{pixels.rows} pixels and its compressed image has {size[0]}x{size[1]}; "
            "export it again"
        )


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Columns and rows that a JPEG, JPEG-LS or JPEG 2000 image says it has; None where it does not say."""
    if frame[:4] == b"\xff\x4f\xff\x51":
        x1, y1, x0, y0 = (int.from_bytes(frame[start : start + 4], "big") for start in (8, 12, 16, 20))
        return x1 - x0, y1 - y0
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[at + 7 : at + 9], "big"), int.from_bytes(frame[at + 5 : at + 7], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _finished(frame: Frame, stored: NDArray[Any]) -> NDArray[Any]:
    """Stored values as the volume holds them."""
    pixels = frame.pixels
    if pixels.photometric == "PALETTE COLOR":
        return _palette(frame, stored)
    if pixels.samples == 3:
        return (stored >> max(0, pixels.bits_stored - 8)).astype(np.uint8)
    values = stored.astype(np.float64)
    if pixels.photometric == "MONOCHROME1" and not has_units(frame):
        # White is the lowest value. Where values are measurements, that is about the display alone.
        values = (-1 if pixels.signed else 2**pixels.bits_stored - 1) - values
    with np.errstate(over="ignore"):
        result = (values * frame.slope + frame.intercept).astype(np.float32)
    if not np.isfinite(result).all():
        raise VolumeError(f"{frame.name}: its values overflow when rescaled; export it again")
    return result


def has_units(frame: Frame) -> bool:
    """Whether a frame's values are a measured quantity."""
    header = frame.file.header
    return frame.rescale_type == "HU" or header.text("Modality") == "CT" or bool(header.text("Units"))


def _palette(frame: Frame, stored: NDArray[Any]) -> NDArray[np.uint8]:
    processing = require("pydicom.pixels", "dicom")
    with _damage(frame.file.path, frame.index, frame.pixels):
        colors = np.asarray(processing.apply_color_lut(stored, frame.file.header.dataset))[..., :3]
        # Tables of 16 bits may hold 8-bit entries.
        return (colors >> 8 if colors.max(initial=0) > 255 else colors).astype(np.uint8)
