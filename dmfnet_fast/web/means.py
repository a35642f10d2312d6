"""Means as the page computes them, one axis after the other."""

from __future__ import annotations

import struct

from dmfnet_fast.artifacts.onnx_metadata import seal, unsealed
from dmfnet_fast.artifacts.protobuf import Field, fields, varints, with_content, with_integer

# Numbers of fields in ONNX's messages.
_GRAPH = 7  # of a model
_NODE, _INITIALIZER = 1, 5  # of a graph
_INPUT, _OUTPUT, _NAME, _KIND, _ATTRIBUTE = 1, 2, 3, 4, 5  # of a node
_ATTRIBUTE_NAME, _INTS = 1, 8  # of an attribute
_DIMENSIONS, _TYPE, _INT64_DATA, _TENSOR_NAME, _RAW_DATA = 1, 2, 7, 8, 9  # of a tensor
_INT64 = 7
_SPATIAL = [2, 3]


def _texts(message: list[Field], number: int) -> list[str]:
    return [field.content.decode() for field in message if field.number == number]


def _axes(graph: list[Field]) -> dict[str, list[int]]:
    """All short lists of integers in a graph, by name: the axes of its means are among them, 0 to 3."""
    found = {}
    for field in graph:
        if field.number == _INITIALIZER:
            tensor = list(fields(field.content))
            kinds = [one.integer for one in tensor if one.number == _TYPE]
            if kinds != [_INT64] or sum(one.number == _DIMENSIONS for one in tensor) > 1:
                continue
            values = [value for one in tensor if one.number == _INT64_DATA for value in varints(one)]
            for one in tensor:
                if one.number == _RAW_DATA:
                    values += struct.unpack(f"<{len(one.content) // 8}q", one.content)
            names = _texts(tensor, _TENSOR_NAME)
        elif field.number == _NODE:
            node = list(fields(field.content))
            attributes = [list(fields(one.content)) for one in node if one.number == _ATTRIBUTE]
            if _texts(node, _KIND) != ["Constant"] or [_texts(a, _ATTRIBUTE_NAME) for a in attributes] != [
                ["value_ints"]
            ]:
                continue
            values = [value for one in attributes[0] if one.number == _INTS for value in varints(one)]
            names = _texts(node, _OUTPUT)
        else:
            continue
        found[names[0]] = sorted(value % 4 for value in values)  # -1 is the last of four
    return found


def _mean(node: list[Field], axis: int, source: str, target: str) -> bytes:
    """A mean over one axis, in a graph, with the attributes of another node."""
    parts = [
        with_content(_INPUT, source.encode()),
        with_content(_INPUT, _name_of(axis).encode()),
        with_content(_OUTPUT, target.encode()),
        with_content(_NAME, f"{_texts(node, _NAME)[0]}_{axis}".encode()),
        with_content(_KIND, b"ReduceMean"),
    ]
    return with_content(_NODE, b"".join([*parts, *(one.raw for one in node if one.number == _ATTRIBUTE)]))


def _name_of(axis: int) -> str:
    return f"one_axis_{axis}"


def _list_of(axis: int) -> bytes:
    """A list of one axis, in a graph."""
    parts = [
        with_integer(_DIMENSIONS, 1),
        with_integer(_TYPE, _INT64),
        with_content(_TENSOR_NAME, _name_of(axis).encode()),
    ]
    return with_content(_INITIALIZER, b"".join([*parts, with_content(_RAW_DATA, struct.pack("<q", axis))]))


def one_axis_at_a_time(content: bytes) -> bytes:
    """Replace means over height and width by means over width and then over height.

    ONNX Runtime sums a whole plane in float32 without intermediate sums, which loses digits: of 512x512 pixels so many
    that turbo is off by a fifth of a gray level. Sums of rows first lose none that matter, and take no longer.

    Args:
        content: of an .onnx file of dmfnet-export.

    Returns:
        The changed network, sealed anew; without such means `content` itself.

    Raises:
        ValueError: the content is not an ONNX model.
    """
    model = list(fields(unsealed(content)))
    graph = [one for field in model if field.number == _GRAPH for one in fields(field.content)]
    axes = _axes(graph)
    parts, changed = [], False
    for field in graph:
        node = list(fields(field.content)) if field.number == _NODE else []
        inputs = _texts(node, _INPUT)
        if _texts(node, _KIND) != ["ReduceMean"] or axes.get(inputs[-1]) != _SPATIAL:
            parts.append(field.raw)
            continue
        changed = True
        target = _texts(node, _OUTPUT)[0]
        between = f"{target}_of_rows"
        # Taking an axis away moves none before it.
        parts += [_mean(node, 3, inputs[0], between), _mean(node, 2, between, target)]
    if not changed:
        return content
    parts += [_list_of(axis) for axis in _SPATIAL]
    others = [field.raw for field in model if field.number != _GRAPH]
    return seal(b"".join([with_content(_GRAPH, b"".join(parts)), *others]))
