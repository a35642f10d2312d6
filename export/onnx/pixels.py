"""Graphs from pixels to pixels: an exported network between the conversion of 8-bit images and the rules.

Both parts are traced from the definitions that PyTorch engines use (`dmfnet_fast.engines.pixels`), and put before and
behind the network's own graph, which stays as it was checked. In TensorRT, only inputs and outputs may be uint8, and
only a conversion from or to floating point may read or write them. All else is float32, in operators that TensorRT 10.3
has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from dmfnet_fast.artifacts.interface import IMAGES, OUTPUT, RULES, Interface
from dmfnet_fast.artifacts.onnx_metadata import PIXELS, PIXELS_YES
from dmfnet_fast.engines.pixels import BLACK, WHITE, gray_of, interval_of, pixels_of
from dmfnet_fast.errors import require
from dmfnet_fast.images.rules import Chroma, Interval, chroma_of, color_interval_of, common, neighborhood_interval
from export.onnx.graph import OPSET, TRACED, add_metadata, tidy, trace_module

onnx = require("onnx", extra="export")

# What the part before the network passes on to the part behind it.
_PASSED = (*Interval._fields, "red", "green", "blue", *Chroma._fields[1:])
_INSIDE = "network."  # what the names of the network's own tensors begin with
_PIXELS = "pixels"  # the result of the part behind the network


class _Before(nn.Module):
    """From pixels and rules to the network's inputs and what `_Behind` needs."""

    def __init__(self, interval: bool) -> None:
        super().__init__()
        self._interval = interval

    def forward(self, a: Tensor, b: Tensor, rules: Tensor) -> tuple[Tensor, ...]:
        """See `Interface` for the inputs."""
        thousandth, invention = rules[:1], rules[1:]
        gray_a, gray_b = gray_of(a), gray_of(b)
        near = neighborhood_interval(gray_a, gray_b)
        near = Interval(
            near.lowest + (BLACK - near.lowest) * invention, near.highest + (WHITE - near.highest) * invention
        )
        chroma = chroma_of(*b.float().unbind(-1))
        limits = common(color_interval_of(chroma, thousandth, BLACK, WHITE, whole=True), near)
        # The quotients are the float32 values of `color.to_network`, all 256 of them.
        inputs = [((2 * gray - (WHITE + BLACK)) / (WHITE - BLACK))[:, None] for gray in (gray_a, gray_b)]
        if self._interval:
            inputs.append(interval_of(limits))
        return (*inputs, *limits, *chroma.channels, *chroma[1:])


class _Behind(nn.Module):
    """From the network's result to pixels."""

    def forward(
        self,
        fused: Tensor,
        lowest: Tensor,
        highest: Tensor,
        red: Tensor,
        green: Tensor,
        blue: Tensor,
        brightest: Tensor,
        darkest: Tensor,
        luminance: Tensor,
        above: Tensor,
        below: Tensor,
    ) -> Tensor:
        """`fused` as the network gives it, the rest as `_Before` does."""
        chroma = Chroma((red, green, blue), brightest, darkest, luminance, above, below)
        pixels: Tensor = pixels_of(fused, Interval(lowest, highest), chroma)
        return pixels


def _renamed(proto: Any, names: Mapping[str, str], prefix: str) -> Any:
    """A copy of a model whose tensors have other names: those of `names`, and all others with a prefix."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)

    def name(old: str) -> str:
        return names.get(old, prefix + old) if old else old

    graph = copy.graph
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = name(value.name)
    for node in graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute), "our graphs have no subgraphs"
        node.name = prefix + node.name
        for places in (node.input, node.output):
            places[:] = [name(old) for old in places]
    return copy


@lru_cache(maxsize=2)
def _around(interval: bool) -> tuple[Any, Any]:
    """The models of `_Before` and `_Behind` for networks that take the interval, or for others."""
    interface = Interface(timesteps=0, interval=interval)
    shapes = replace(interface, pixels=True).shapes(*TRACED)
    images = {name: torch.zeros(shapes[name], dtype=torch.uint8) for name in IMAGES}
    before = trace_module(
        _Before(interval),
        {**images, RULES: torch.zeros(shapes[RULES])},
        {**dict.fromkeys(IMAGES, (0, 1, 2)), RULES: ()},
        [*(_INSIDE + name for name in interface.names), *_PASSED],
        {},
    )
    behind = trace_module(
        _Behind(),
        {OUTPUT: torch.zeros(interface.shapes(*TRACED)["b"]), **{name: torch.zeros(TRACED) for name in _PASSED}},
        {OUTPUT: (0, 2, 3), **dict.fromkeys(_PASSED, (0, 1, 2))},
        [_PIXELS],
        {},
    )
    return tidy(before), tidy(behind)


def with_pixels(network: Any, interface: Interface) -> Any:
    """Put the conversions and the rules around a network.

    Args:
        network: an `onnx.ModelProto` that `dmfnet-export` made; it is not modified.
        interface: interface of the network.

    Returns:
        An `onnx.ModelProto` with the inputs and the output of `Interface` with `pixels`, and the network's metadata.
    """
    before, behind = _around(interface.interval)
    inside = {name: _INSIDE + name for name in (*interface.names, OUTPUT) if name != "noise"}
    parts = (
        _renamed(before, {name: name for name in (*IMAGES, RULES, *inside.values())}, "before."),
        _renamed(network, {**inside, "noise": "noise"}, _INSIDE),
        _renamed(
            behind, {OUTPUT: inside[OUTPUT], _PIXELS: OUTPUT, **{name: f"before.{name}" for name in _PASSED}}, "behind."
        ),
    )
    assert {entry.version for part in parts for entry in part.opset_import if not entry.domain} == {OPSET}
    whole = onnx.ModelProto()
    whole.CopyFrom(parts[1])
    for field in ("node", "initializer", "input", "output"):
        whole.graph.ClearField(field)
    for part in parts:
        whole.graph.node.extend(part.graph.node)
        whole.graph.initializer.extend(part.graph.initializer)
    inputs = {value.name: value for part in parts for value in part.graph.input}
    whole.graph.input.extend(inputs[name] for name in replace(interface, pixels=True).names)
    whole.graph.output.extend(parts[2].graph.output)
    whole.ir_version = max(part.ir_version for part in parts)
    add_metadata(whole, {PIXELS: PIXELS_YES})
    onnx.checker.check_model(whole)
    return whole
