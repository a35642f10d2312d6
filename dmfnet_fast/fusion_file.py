"""What an exported fusion network looks like from outside: what writes such files and what opens them agree here."""

from __future__ import annotations

import hashlib

FORMAT = "dmfnet-fast 1"
KIND = "fusion"  # in the metadata, beside the kinds of weights files
INPUTS = ("a", "b", "noise")
OUTPUT = "fused"

# A last entry of ONNX's metadata_props (field 14: key, value), whose value is the hash of all that precedes it.
_KEY = b"content_sha256"
_SEAL = b"\x72\x52\x0a\x0e" + _KEY + b"\x12\x40"
_DIGITS = 64


def seal(content: bytes) -> bytes:
    """A serialised ONNX model with its hash appended, which stays a serialised ONNX model."""
    return content + _SEAL + hashlib.sha256(content).hexdigest().encode()


def is_sealed(file: bytes) -> bool:
    """Whether a file ends in the hash of the rest: nothing in it has changed since it was exported."""
    end = len(file) - _DIGITS - len(_SEAL)
    return end > 0 and file == seal(file[:end])
