"""The layers of an engine as its builder reports them, and their precision."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dmfnet_fast.errors import warn

# TensorRT's names of types.
_TYPES = {"Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "FP16": "float16", "FP32": "float32"}
_TYPE = re.compile(r"Datatype: (\w+)")
_LINE = re.compile(
    r"Name: (\S+), LayerType: (\w+), Inputs: \[(.*?)\], Constants: \[.*\], Outputs: \[(.*?)\], TacticName"
)
# A fused layer's name lists its operations; these only rearrange or convert values.
_REARRANGING = {"Tran", "Resh", "Cast", "Reformat"}
# Layers that multiply are recognized by their kind, or, if fused, by the operations in their name. Other names are
# unreliable: a copy is named after the convolution that it feeds.
_MULTIPLYING = re.compile(r"corr|conv|gemm|matrixmultiply|matmul", re.IGNORECASE)
_MULTIPLYING_FUSED = re.compile(r"^__myl_\w*?(Corr|Conv|Gemm|Matm)")
FLOAT32_CONVOLUTIONS = 1  # the last one, before the tanh


@dataclass(frozen=True)
class Layer:
    """One kernel of an engine.

    Attributes:
        name, kind: name and kind as reported by the builder.
        precision: type of the first floating-point tensor among the inputs and then the outputs; "" if there is none.
        reformat: whether the layer only rearranges or converts values.
    """

    name: str
    kind: str
    precision: str
    reformat: bool

    @property
    def multiplies(self) -> bool:
        """Whether the layer is a convolution or a matrix product, alone or fused with others."""
        return bool(_MULTIPLYING.search(self.kind) or _MULTIPLYING_FUSED.search(self.name))


def _layer(name: str, kind: str, types: Iterable[str]) -> Layer:
    precision = next((_TYPES[word] for word in types if word in _TYPES), "")
    operations = re.findall(r"[A-Z][a-z]+", name) if name.startswith("__myl_") else [kind]
    return Layer(name, kind, precision, bool(operations) and set(operations) <= _REARRANGING)


def layers_of_log(lines: Iterable[str]) -> list[Layer]:
    """The layers that TensorRT-RTX's builder lists in its verbose log."""
    found = (_LINE.match(line) for line in lines)
    return [_layer(m[1], m[2], [*_TYPE.findall(m[3]), *_TYPE.findall(m[4])]) for m in found if m]


def layers_of_inspector(information: str) -> list[Layer]:
    """The layers in the JSON of TensorRT's engine inspector, for an engine built with detailed profiling verbosity."""

    def types(tensors: list[dict[str, Any]]) -> list[str]:
        # Before TensorRT 10.13 the key is "Format/Datatype"; the type is the first or last of words such as "NHWC8".
        words = [str(t.get("Datatype") or t.get("Format/Datatype", "")) for t in tensors]
        return [next((word for word in text.split() if word in _TYPES), text) for text in words]

    # Without detailed verbosity, a layer is reported as its name only.
    layers = [layer for layer in json.loads(information).get("Layers", []) if isinstance(layer, dict)]
    return [
        _layer(
            layer["Name"], layer.get("LayerType", ""), types(layer.get("Inputs", [])) + types(layer.get("Outputs", []))
        )
        for layer in layers
    ]


def summary(layers: Sequence[Layer]) -> dict[str, Any]:
    """Counts and the list of layers for the manifest."""
    return {
        "count": len(layers),
        "reformats": sum(layer.reformat for layer in layers),
        "kinds": dict(Counter(layer.kind for layer in layers).most_common()),
        "list": [asdict(layer) for layer in layers],
    }


def check_precision(layers: Sequence[Layer], precision: str) -> None:
    """Warn if convolutions and matrix products seem not to have the requested precision.

    In half precision, FLOAT32_CONVOLUTIONS of them may be float32. This is no error, because the graph itself fixes
    all types, parity is checked, and reports differ between releases: before 10.13, for instance, TensorRT's inspector
    may list a convolution's float32 bias first.
    """
    arithmetic = [layer for layer in layers if layer.multiplies]
    if not arithmetic:
        warn("the builder reports no convolutions, so their precision is not known")
        return
    others = [layer for layer in arithmetic if layer.precision != precision]
    allowed = 0 if precision == "float32" else FLOAT32_CONVOLUTIONS
    if len(others) > allowed or any(layer.precision != "float32" for layer in others):
        warn(
            f"{len(others)} of {len(arithmetic)} convolutions and products of the engine are not reported as "
            f"{precision} ({others[0].name}: {others[0].precision or 'no type'}): compare its speed with that of "
            "another version of TensorRT"
        )
