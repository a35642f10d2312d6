"""The graph to build from: exported from weights, or read from an ONNX file that dmfnet-export made."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dmfnet_fast.artifacts.interface import Interface, interface_of
from dmfnet_fast.artifacts.onnx_metadata import PIXELS, check_sealed, exported_properties, unsealed
from dmfnet_fast.artifacts.parity import Parity, Reference, Shape, check
from dmfnet_fast.engines.openvino_engine import load_openvino
from dmfnet_fast.errors import EngineError, require
from dmfnet_fast.precision import FloatPrecision, Precision
from export.emulation import ACCUMULATIONS, in_half_precision
from export.errors import RequestError
from export.int8 import (
    OUTLIERS,
    OUTLIERS_OF_PHANTOMS,
    calibration_pairs,
    calibration_phantoms,
    check_nncf,
    quantize,
    quantized_weights,
)
from export.tensorrt.builder import Profile
from export.verify import (
    LARGEST_HALF,
    STANDARD_SHAPES,
    Report,
    has_onnx_runtime,
    on_onnx_runtime,
    on_openvino,
    pairs_to_check,
    references,
    widened,
)

# Context manager around a named step; yields a callback for its progress, 0 to 1.
Step: TypeAlias = Callable[[str], AbstractContextManager[Report]]

MOST_PIXELS = 4 * 256 * 256  # largest batch to check; more takes minutes in float32 on a CPU
NOTHING_WRITTEN = "nothing was written"
# Stored references are rounded to this step so that they compress better; the error is below a twentieth of the limit
# for float32 parity.
_STEP = 2.0**-17
# Activations may use 1/RESERVE of float16's range, as other images may reach further than those of the check.
RESERVE = 4


@dataclass(frozen=True)
class Graph:
    """An ONNX model with its metadata.

    Attributes:
        content: the serialized model.
        precision, config, training: from its metadata.
        weights: hash of the weights, from its metadata.
        references: float32 results of the network as trained.
        largest_activation: see `verify.references`.
        parity: how this graph compares with the references on other engines.
        pixels: whether it takes 8-bit images, see `Interface`.
    """

    content: bytes
    precision: Precision
    config: dict[str, Any]
    training: dict[str, Any]
    weights: str
    references: tuple[Reference, ...]
    largest_activation: float
    parity: tuple[Parity, ...]
    pixels: bool


def shapes_of(profile: Profile) -> list[Shape]:
    """The shapes of a profile to check: its minimum, optimum and maximum, and one pair of a size halfway.

    Shapes of more than MOST_PIXELS are left out, except the minimum if no other shape remains.
    """
    between = tuple(
        max(16, (low + high) // 32 * 16) for low, high in zip(profile.min[1:], profile.max[1:], strict=True)
    )
    shapes = (profile.min, (1, between[0], between[1]), profile.opt, profile.max)
    chosen = [shape for shape in dict.fromkeys(shapes) if np.prod(shape) <= MOST_PIXELS]
    return chosen or [profile.min]


def pack(kept: Sequence[Reference]) -> str:
    """Encode references as a string for the metadata of an ONNX file; results are rounded to multiples of 2^-17."""
    arrays: dict[str, Any] = {}
    for n, reference in enumerate(kept):
        rounded = (np.rint(reference.fused / _STEP) * _STEP).astype(np.float32)
        arrays |= {f"a{n}": reference.a, f"b{n}": reference.b, f"fused{n}": rounded}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return base64.b64encode(file.getvalue()).decode()


def unpack(text: str, interface: Interface) -> tuple[Reference, ...]:
    """Decode references that `pack` encoded, for a network with this interface.

    Raises:
        ValueError: `text` is not an encoding by `pack`.
    """
    try:
        with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as file:
            count = len(file.files) // 3
            return tuple(Reference(file[f"a{n}"], file[f"b{n}"], file[f"fused{n}"], interface) for n in range(count))
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from error


def from_weights(
    path: Path,
    precision: Precision,
    for_engine: bool,
    profile: Profile | None,
    step: Step,
    calibrate: Path | None = None,
    every_block: bool = False,
    for_plugins: bool = False,
) -> Graph:
    """Export weights to a graph and check it.

    Args:
        path: a .safetensors file.
        precision: precision of the arithmetic.
        for_engine: export the graph that TensorRT builds from, which half precision requires; otherwise the one for
            CPUs.
        profile: further sizes to check, or None.
        step: see `Step`.
        calibrate: for int8, a folder of calibration pairs; None uses phantoms.
        every_block: for int8, whether to quantize the first and the last block.
        for_plugins: leave the operations that plugins replace as functions.

    Raises:
        ImageError: `calibrate` holds no pairs, or some that cannot be used.
        EngineError: the weights cannot be read, or the results of the graph differ from the network's.
        MissingExtraError: a library that the export needs is not installed.
    """
    for module in ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        require(module, extra="export")
    if not for_engine:
        load_openvino("export")
    if precision == "int8":
        check_nncf()
    from dmfnet_fast.model import load_model
    from dmfnet_fast.model.weights import read_metadata
    from export.onnx.graph import add_metadata

    with step(f"reading {path}"):
        model = load_model(path)
        sha256 = read_metadata(path).get("sha256")
    if precision == "int8":
        proto = _to_int8(model, sha256, calibrate, every_block, step)
    else:
        proto = _to_onnx(model, precision, for_engine, for_plugins, sha256, step)
    with step("fusing in float32, to compare with") as report:
        shapes = list(dict.fromkeys([*STANDARD_SHAPES, *(shapes_of(profile) if profile else [])]))
        kept, largest = references(model, pairs_to_check(shapes), report)
    if precision == "float16" and largest > LARGEST_HALF / RESERVE:
        raise EngineError(
            f"{path}: its values reach {largest:.0f}, float16 holds up to {LARGEST_HALF:.0f}, which leaves too little "
            "for other images: use --bf16"
        )
    parity = []
    with step("checking with ONNX Runtime") as report:
        checked = widened(proto) if precision == "bfloat16" else proto
        parity.append(on_onnx_runtime(checked.SerializeToString(), precision, kept, report))
    if precision == "float16":
        content = (_inline(proto) if for_plugins else proto).SerializeToString()
        for accumulation in ACCUMULATIONS:
            with step(f"checking in emulated half precision, {accumulation} sums") as report:
                parity.append(in_half_precision(content, accumulation, kept, report))
    if not for_engine:
        with step("checking with OpenVINO"):
            parity += on_openvino(proto.SerializeToString(), kept)
    for entry in parity:
        check(entry, NOTHING_WRITTEN)
    metadata = {
        "parity": json.dumps([entry.to_dict() for entry in parity]),
        "references": pack(kept),
        "largest_activation": str(largest),
    }
    add_metadata(proto, metadata)
    graph = from_content(proto.SerializeToString(), str(path))
    return replace(graph, references=tuple(kept))


def _inline(proto: Any) -> Any:
    """See `export.onnx.functions`, which imports kernels, and with them Triton."""
    from export.onnx.functions import inline

    return inline(proto)


def _to_onnx(
    model: Any, precision: FloatPrecision, for_engine: bool, for_plugins: bool, sha256: str | None, step: Step
) -> Any:
    """Export the model to ONNX, for CPUs or for engines."""
    from dmfnet_fast.model import Student
    from export.onnx.graph import to_onnx

    if for_engine and not isinstance(model, Student):
        require("triton", extra="export", hint=" on Linux; elsewhere build from an .onnx file that was made there")
        from export.tensorrt.engine_graph import to_engine_onnx

        with step("optimizing, exporting to ONNX"):
            return to_engine_onnx(model, precision, sha256, for_plugins)
    with step("optimizing, exporting to ONNX"):
        return to_onnx(model, precision, sha256)


def _to_int8(model: Any, sha256: str | None, calibrate: Path | None, every_block: bool, step: Step) -> Any:
    """Export the model to ONNX with convolutions in 8 bits; see `export.int8`."""
    from export.onnx.graph import finish, plain_graph

    with step("reading pairs to calibrate with" if calibrate is not None else "drawing pairs to calibrate with"):
        pairs = calibration_phantoms() if calibrate is None else calibration_pairs(calibrate)
    with step("optimizing, exporting to ONNX"):
        proto = plain_graph(model)
    with step("quantizing") as report:
        outliers = OUTLIERS_OF_PHANTOMS if calibrate is None else OUTLIERS
        config = model.config.to_dict()
        quantized = quantized_weights(config, every_block)
        proto = quantize(proto, quantized, interface_of(config), pairs, outliers, report)
    return finish(proto, model, "int8", sha256)


def from_content(content: bytes, name: str) -> Graph:
    """Parse the metadata of a serialized model.

    Args:
        content: the serialized model.
        name: name of the file, for error messages.

    Raises:
        EngineError: the model was not made by this version of dmfnet-export, or is damaged.
    """
    known = exported_properties(content, name)
    try:
        config = json.loads(known["config"])
        return Graph(
            content,
            known["precision"],  # type: ignore[arg-type]
            config,
            json.loads(known["training"]),
            known["sha256"],
            unpack(known["references"], interface_of(config)),
            float(known["largest_activation"]),
            tuple(Parity.from_dict(entry) for entry in json.loads(known["parity"])),
            PIXELS in known,
        )
    except KeyError as error:
        raise EngineError(f"{name}: has no {error} in it, so another version made it; make it anew") from error
    except (ValueError, TypeError) as error:
        raise EngineError(f"{name}: is not a readable ONNX file, or is damaged ({error})") from error


def from_onnx(path: Path, precision: Precision, step: Step) -> Graph:
    """Read an ONNX file that dmfnet-export made, and check it if ONNX Runtime is installed.

    Raises:
        EngineError: the file cannot be read, has changed, or its results differ from the network's.
        RequestError: the file has another precision than the one requested, or int8, which TensorRT engines are not
            built from.
    """
    with step(f"reading {path}"):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error
        graph = from_content(content, str(path))
        check_sealed(content, str(path))
    if graph.precision == "int8":
        raise RequestError(f"{path}: is an int8 network for OpenVINO; export the weights anew")
    if graph.precision != precision:
        raise RequestError(
            f"{path}: its precision is {graph.precision}, not {precision}: it is in the graph; ask for that, or export "
            "the weights anew"
        )
    # Checking bfloat16 takes a float32 copy of the model, and making that takes onnx; it was checked at its export.
    if has_onnx_runtime() and precision != "bfloat16":
        with step("checking with ONNX Runtime") as report:
            parity = on_onnx_runtime(content, precision, graph.references, report)
        check(parity, NOTHING_WRITTEN)
        others = (entry for entry in graph.parity if entry.engine != parity.engine)
        graph = replace(graph, parity=(parity, *others))
    return graph


def with_pixels(graph: Graph, for_engine: bool, step: Step) -> Graph:
    """Put the conversion from and to 8-bit images and the rules around a graph, and check the result.

    Args:
        graph: a graph of luminances.
        for_engine: as for `from_weights`.
        step: see `Step`.

    Raises:
        EngineError: the results of the new graph differ from the network's.
        MissingExtraError: a library that this needs is not installed.
    """
    hint = "; without it, build from a graph that was exported elsewhere with --target onnx --pixels"
    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        require(module, extra="export", hint=hint)
    import onnx

    from export.onnx import pixels

    with step("adding 8-bit images and rules"):
        proto = pixels.with_pixels(onnx.ModelProto.FromString(unsealed(graph.content)), interface_of(graph.config))
    content = proto.SerializeToString()
    with step("checking them with ONNX Runtime") as report:
        checked = widened(proto).SerializeToString() if graph.precision == "bfloat16" else content
        parity = [on_onnx_runtime(checked, graph.precision, graph.references, report)]
    if not for_engine:
        with step("checking them with OpenVINO"):
            parity += on_openvino(content, graph.references)
    for entry in parity:
        check(entry, NOTHING_WRITTEN)
    return replace(graph, content=content, pixels=True)
