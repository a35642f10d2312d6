"""Metadata of exported ONNX files: format, kind, and a hash of the content."""

from __future__ import annotations

import hashlib

from dmfnet_fast.artifacts.protobuf import fields
from dmfnet_fast.errors import EngineError

FORMAT = "dmfnet-fast 1"
# The entry of graphs from pixels to pixels (`Interface.pixels`); others have none.
PIXELS, PIXELS_YES = "pixels", "yes"
KIND = "fusion"  # the "kind" in the metadata; weights files have kinds of their own

# The last entry of ONNX's metadata_props (field 14: key, value); its value is the hash of all preceding bytes.
_KEY = b"content_sha256"
_SEAL = b"\x72\x52\x0a\x0e" + _KEY + b"\x12\x40"
_DIGITS = 64


def seal(content: bytes) -> bytes:
    """Append the hash of a serialized ONNX model to it; the result is again a serialized ONNX model."""
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def is_sealed(file: bytes) -> bool:
    """Whether a file ends in the hash of the rest, that is, is unchanged since it was exported."""
    end = len(file) - _DIGITS - len(_SEAL)
    return end > 0 and file == seal(file[:end])


def check_sealed(file: bytes, name: str) -> None:
    """Raise an EngineError, which names the file, if it has changed since it was exported."""
    if not is_sealed(file):
        raise EngineError(f"{name}: has changed since it was exported, or is damaged; fetch or export it again")


def unsealed(file: bytes) -> bytes:
    """A file without its seal, if it has one."""
    return file[: -_DIGITS - len(_SEAL)] if is_sealed(file) else file


def properties(file: bytes) -> dict[str, str]:
    """The metadata_props of a serialized ONNX model, read without the onnx package, which a Jetson may lack.

    Raises:
        ValueError: the file is not an ONNX model, or is truncated.
    """
    try:
        entries = [{one.number: one.content for one in fields(f.content)} for f in fields(file) if f.number == 14]
        return {entry[1].decode(): entry.get(2, b"").decode() for entry in entries}
    except KeyError as error:
        raise ValueError("not an ONNX model, or truncated") from error


def has_functions(file: bytes) -> bool:
    """Whether a serialized ONNX model has functions of its own (field 25); a file that is no model has none."""
    try:
        return any(field.number == 25 for field in fields(file))
    except ValueError:
        return False


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
