"""Whether an exported network is still the network: on other engines, against float32 PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.onnx_metadata import properties, seal
from dmfnet_fast.artifacts.parity import Parity, Reference, Shape, compare_with
from dmfnet_fast.engines.openvino_engine import OpenVINOEngine
from dmfnet_fast.errors import EngineError
from dmfnet_fast.images.color import to_luminance8
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.precision import PrecisionChoice

Gray: TypeAlias = NDArray[np.uint8]
Report: TypeAlias = Callable[[float], None]

STANDARD_SHAPES: tuple[Shape, ...] = ((2, 64, 96), (1, 128, 128), (1, 256, 256))
LARGEST_HALF = 65504.0


def phantom_pairs(shape: Shape) -> tuple[Gray, Gray]:
    """Luminances of made-up heads, MRI and PET, cut from the middle of larger squares."""
    n, height, width = shape
    size = max(height, width)
    top, left = (size - height) // 2, (size - width) // 2
    part = slice(top, top + height), slice(left, left + width)
    heads = [make_phantom(seed, size) for seed in range(n)]
    b = [to_luminance8(head.other("PET"), "phantom")[part] for head in heads]
    return np.stack([head.mri[part] for head in heads]), np.stack(b)


def _extremes(height: int, width: int) -> tuple[Gray, Gray]:
    """Black, gray, full contrast in lines and in halves, and saturated heads: five pairs."""
    black, white = np.zeros((height, width), np.uint8), np.full((height, width), 255, np.uint8)
    lines, halves = black.copy(), black.copy()
    lines[::2] = 255
    halves[:, width // 2 :] = 255
    (head,), (other,) = phantom_pairs((1, height, width))
    saturated = [(image.astype(np.int64) * 4).clip(0, 255).astype(np.uint8) for image in (head, other)]
    a = [black, white // 2, lines, halves, saturated[0]]
    b = [black, white // 2, lines.T if height == width else 255 - lines, white, saturated[1]]
    return np.stack(a), np.stack(b)


def pairs_to_check(shapes: Sequence[Shape], most_pairs: int | None = None) -> list[tuple[Gray, Gray]]:
    """Phantom pairs of each shape, and, of the first shape's size, extreme ones.

    `most_pairs`, if given, is what the engine takes at once: the extreme pairs come in batches of that many.
    """
    extreme_a, extreme_b = _extremes(*shapes[0][1:])
    step = most_pairs or len(extreme_a)
    batches = [phantom_pairs(shape) for shape in shapes]
    return batches + [(extreme_a[n : n + step], extreme_b[n : n + step]) for n in range(0, len(extreme_a), step)]


def _nothing(_: float) -> None:
    """Takes no notice of progress."""


def references(
    model: Any, pairs: Sequence[tuple[Gray, Gray]], report: Report = _nothing
) -> tuple[list[Reference], float]:
    """What `model`, as trained and on a CPU, makes of the pairs; and its largest activation, a magnitude.

    `report` is told what part is done, 0 to 1. The largest activation is that of any tensor between operators: half
    precision holds up to 65504.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        value = 0.0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim() == 4:
                    low, high = torch.aminmax(tensor)
                    self.value = max(self.value, -float(low), float(high))
            return result

    found, done = [], 0
    with torch.inference_mode(), Largest() as largest:
        for a, b in pairs:
            unknown = Reference(a, b, np.empty(0, np.float32), interface_of(model.config.to_dict()))
            tensors = {name: torch.tensor(array) for name, array in unknown.inputs.items()}
            found.append(replace(unknown, fused=model(**tensors).numpy()))
            done += a.size
            report(done / sum(image.size for image, _ in pairs))
    return found, largest.value


def on_onnx_runtime(proto: bytes, precision: str, wanted: Sequence[Reference], report: Report = _nothing) -> Parity:
    """Run an exported network on ONNX Runtime; `report` is told what part is done, 0 to 1.

    Raises:
        EngineError: it cannot.
    """
    try:
        onnxruntime: Any = import_module("onnxruntime")  # which has no type hints
        session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]  # of a served model, without the noise
        fused = []
        for reference in wanted:
            given = reference.inputs
            fused.append(session.run(None, {name: given[name] for name in names})[0])
            report(sum(image.size for image in fused) / sum(r.fused.size for r in wanted))
    except Exception as error:  # its exceptions have no common class
        raise EngineError(f"ONNX Runtime cannot run the exported network: {error}; upgrade onnxruntime") from error
    return compare_with("ONNX Runtime", precision, fused, wanted)


def widened(proto: Any) -> Any:
    """A bfloat16 model with float32 in its place, as ONNX Runtime has no convolutions of bfloat16.

    The weights stay rounded; what is computed from them is not.
    """
    import onnx

    kinds = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    for n, tensor in enumerate(wide.graph.initializer):
        if tensor.data_type == kinds[0]:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            wide.graph.initializer[n].CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == kinds[0]:
                attribute.i = kinds[1]
            elif node.op_type == "Constant" and attribute.t.data_type == kinds[0]:
                values = onnx.numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(values))
    return wide


def has_onnx_runtime() -> bool:
    return find_spec("onnxruntime") is not None


def on_openvino(proto: bytes, wanted: Sequence[Reference]) -> list[Parity]:
    """Run an exported network on OpenVINO, at each precision in which this CPU computes such a file.

    Raises:
        EngineError: OpenVINO cannot open it.
        MissingExtraError: OpenVINO is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exported.onnx"
        path.write_bytes(seal(proto))
        of_file: Any = properties(proto)["precision"]
        choices: tuple[PrecisionChoice, ...] = (of_file, "auto")
        engines = [OpenVINOEngine(path, "cpu", choice, None) for choice in choices]
        return [
            compare_with("OpenVINO", precision, [engine.run(r.inputs) for r in wanted], wanted)
            for precision, engine in {engine.info["precision"]: engine for engine in engines}.items()
        ]
