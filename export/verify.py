"""Verification of exported networks: their results on other engines against those of float32 PyTorch."""

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
from dmfnet_fast.artifacts.onnx_metadata import PIXELS, properties, seal
from dmfnet_fast.artifacts.parity import Parity, Reference, Shape, compare_with, result_of
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
    """Luminances (N, H, W) of phantoms, MRI and PET, cropped from the middle of squares."""
    n, height, width = shape
    size = max(height, width)
    top, left = (size - height) // 2, (size - width) // 2
    part = slice(top, top + height), slice(left, left + width)
    heads = [make_phantom(seed, size) for seed in range(n)]
    b = [to_luminance8(head.other("PET"), "phantom")[part] for head in heads]
    return np.stack([head.mri[part] for head in heads]), np.stack(b)


def _extremes(height: int, width: int) -> tuple[Gray, Gray]:
    """Five pairs of extreme images: black, gray, full contrast in lines and in halves, and saturated phantoms."""
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
    """Phantom pairs of each shape, and extreme pairs of the first shape's height and width.

    Args:
        shapes: shapes (N, H, W) of the phantom pairs.
        most_pairs: largest batch of the extreme pairs, for an engine with a limit; None puts them in one batch.
    """
    extreme_a, extreme_b = _extremes(*shapes[0][1:])
    step = most_pairs or len(extreme_a)
    batches = [phantom_pairs(shape) for shape in shapes]
    return batches + [(extreme_a[n : n + step], extreme_b[n : n + step]) for n in range(0, len(extreme_a), step)]


def _nothing(_: float) -> None:
    """Ignore progress."""


def references(
    model: Any, pairs: Sequence[tuple[Gray, Gray]], report: Report = _nothing
) -> tuple[list[Reference], float]:
    """Fuse pairs with the network as trained, in float32 on the CPU.

    Args:
        model: the network as trained.
        pairs: luminances (N, H, W).
        report: callback for the progress, 0 to 1.

    Returns:
        The results, and the largest magnitude in any feature map between operators. float16 holds up to 65504.
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
    """Run an exported network on ONNX Runtime and compare it with references.

    Args:
        proto: serialized ONNX model.
        precision: precision to report.
        wanted: the references.
        report: callback for the progress, 0 to 1.

    Raises:
        EngineError: ONNX Runtime is not installed or cannot run the model.
    """
    try:
        onnxruntime: Any = import_module("onnxruntime")  # has no type hints
        session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]  # a served model has no input for the noise
        pixels = PIXELS in properties(proto)
        fused: list[NDArray[np.float32]] = []
        for reference in wanted:
            given = reference.pixel_inputs if pixels else reference.inputs
            (result,) = session.run(None, {name: given[name] for name in names})
            fused.append(reference.nearest(result[..., 0]) if pixels else result)
            report(sum(image.size for image in fused) / sum(r.fused.size for r in wanted))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise EngineError(f"ONNX Runtime cannot run the exported network: {error}; upgrade onnxruntime") from error
    return compare_with("ONNX Runtime", precision, fused, wanted)


def widened(proto: Any) -> Any:
    """Convert a bfloat16 model to float32, as ONNX Runtime has no bfloat16 convolutions.

    The weights keep their bfloat16 values, but intermediate results are no longer rounded.
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
    """Compare an exported network with references on OpenVINO, in the file's own precision and in that of "auto".

    Returns one entry if both precisions are the same.

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
            compare_with("OpenVINO", precision, [result_of(engine, r) for r in wanted], wanted)
            for precision, engine in {engine.info["precision"]: engine for engine in engines}.items()
        ]
