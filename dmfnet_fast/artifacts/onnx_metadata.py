"""How an exported network's ONNX file says what it is: its format, its metadata, and a hash of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from dmfnet_fast.errors import EngineError

FORMAT = "dmfnet-fast 1"
KIND = "fusion"  # in the metadata, beside the kinds of weights files

# A last entry of ONNX's metadata_props (field 14: key, value), whose value is the hash of all that precedes it.
_KEY = b"content_sha256"
_SEAL = b"\x72\x52\x0a\x0e" + _KEY + b"\x12\x40"
_DIGITS = 64


def seal(content: bytes) -> bytes:
    """A serialized ONNX model with its hash appended, which stays a serialized ONNX model."""
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def is_sealed(file: bytes) -> bool:
    """Whether a file ends in the hash of the rest: nothing in it has changed since it was exported."""
    end = len(file) - _DIGITS - len(_SEAL)
    return end > 0 and file == seal(file[:end])


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A protobuf varint, and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of a protobuf message's length-delimited fields."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        if key & 7 == 0:
            _, at = _varint(content, at)
        elif key & 7 == 2:
            size, at = _varint(content, at)
            if at + size > len(content):
                raise ValueError("truncated")
            yield key >> 3, content[at : at + size]
            at += size
        else:
            raise ValueError("not an ONNX model")


def properties(file: bytes) -> dict[str, str]:
    """The metadata_props of a serialized ONNX model, read without onnx, which a Jetson need not have.

    Raises:
        ValueError: it is no such model, or truncated.
    """
    try:
        entries = [dict(_fields(content)) for number, content in _fields(file) if number == 14]
        return {entry[1].decode(): entry.get(2, b"").decode() for entry in entries}
    except (IndexError, KeyError) as error:
        raise ValueError("not an ONNX model, or truncated") from error


def exported_properties(file: bytes, name: str) -> dict[str, str]:
    """The metadata of a file that dmfnet-export made.

    Args:
        name: of the file, for errors.

    Raises:
        EngineError: it is damaged, or was not made by that.
    """
    try:
        known = properties(file)
    except ValueError as error:
        raise EngineError(f"{name}: is not a readable ONNX file, or is damaged ({error})") from error
    if known.get("format") != FORMAT or known.get("kind") != KIND:
        raise EngineError(f"{name}: was not made by dmfnet-export; make it anew from weights")
    return known
