"""The wire format of protobuf, as far as ONNX files need it, without the onnx package, which many machines lack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: of the field in its message.
        integer: the value of a varint, and 0 of other kinds.
        content: of a string, bytes, message or packed field, and empty for other kinds.
        raw: the field as it is in the file, with its key.
    """

    number: int
    integer: int
    content: bytes
    raw: bytes


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The value of the varint at offset `at`, and the offset of its end."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _as_varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, in their order.

    Raises:
        ValueError: the content is no message of protobuf, or is truncated.
    """
    at = 0
    try:
        while at < len(message):
            start, integer, content = at, 0, b""
            key, at = _varint(message, at)
            kind = key & 7
            if kind == _VARINT:
                integer, at = _varint(message, at)
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            elif kind == _BYTES:
                size, at = _varint(message, at)
                content = message[at : at + size]
                at += size
            else:
                raise ValueError("no message of protobuf")
            if at > len(message):
                raise ValueError("truncated")
            yield Field(key >> 3, integer, content, message[start:at])
    except IndexError as error:
        raise ValueError("truncated") from error


def varints(field: Field) -> list[int]:
    """The values of a repeated integer, of which files hold each in a field of its own or all in one, packed.

    Negative ones, which take 64 bits, are 2^64 too large.
    """
    if not field.content:
        return [field.integer]
    values, at = [], 0
    while at < len(field.content):
        value, at = _varint(field.content, at)
        values.append(value)
    return values


def with_content(number: int, content: bytes) -> bytes:
    """A field that holds a string, bytes or a message."""
    return _as_varint(number << 3 | _BYTES) + _as_varint(len(content)) + content


def with_integer(number: int, value: int) -> bytes:
    """A field that holds an integer, which must not be negative."""
    return _as_varint(number << 3 | _VARINT) + _as_varint(value)
