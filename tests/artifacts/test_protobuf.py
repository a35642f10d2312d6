"""protobuf's wire format, against the protobuf library's own."""

from __future__ import annotations

import onnx
import pytest

from dmfnet_fast.artifacts.protobuf import fields, varints, with_content, with_integer


def test_fields() -> None:
    """Every kind of field is found, and can be written again."""
    tensor = onnx.helper.make_tensor("name", onnx.TensorProto.INT64, [2, 300], range(600))  # integers packed
    ints = onnx.helper.make_attribute("ints", [7, 2**40])  # each in a field of its own
    number = onnx.helper.make_attribute("number", 0.5)  # 32 bits
    for message in (tensor, ints, number):
        content = message.SerializeToString()
        assert b"".join(field.raw for field in fields(content)) == content
    found = list(fields(tensor.SerializeToString()))
    assert [value for field in found if field.number == 7 for value in varints(field)] == list(range(600))
    assert [value for field in found if field.number == 1 for value in varints(field)] == [2, 300]
    found = list(fields(ints.SerializeToString()))
    assert [value for field in found if field.number == 8 for value in varints(field)] == [7, 2**40]
    written = with_integer(1, 300) + with_integer(2, onnx.TensorProto.INT64) + with_content(8, b"n" * 200)
    assert onnx.TensorProto.FromString(written) == onnx.TensorProto(dims=[300], data_type=7, name="n" * 200)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x0a\x05abc", "truncated"), (b"\x0a", "truncated"), (b"\x0d\0\0", "truncated"), (b"\x0b", "no message")],
)
def test_damage(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(fields(content))
