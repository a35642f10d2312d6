"""What a file of ours says of itself: weights, ONNX models, engines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmfnet_fast.artifacts.manifest import Manifest
from dmfnet_fast.artifacts.onnx_metadata import is_sealed
from dmfnet_fast.artifacts.parity import Parity
from dmfnet_fast.errors import EngineError
from export.onnx.source import from_content

MOST_LAYERS = 400


def _table(rows: dict[str, Any]) -> Iterator[str]:
    width = max(map(len, rows))
    for label, value in rows.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        yield f"{label:{width}}  {text}"


def _weights(path: Path) -> Iterator[str]:
    from dmfnet_fast.model.weights import read_metadata

    yield from _table({"file": path, **read_metadata(path)})


def _onnx(path: Path) -> Iterator[str]:
    content = path.read_bytes()
    graph = from_content(content, str(path))
    yield from _table(
        {
            "file": path,
            "kind": "ONNX model, for any batch and any multiple of 16 from 64 on",
            "precision": graph.precision,
            "weights": graph.weights,
            "config": graph.config,
            "training": graph.training,
            "largest activation": f"{graph.largest_activation:.4g}",
            "unchanged": "yes" if is_sealed(content) else "NO: it has changed since it was exported",
        }
    )
    yield from (f"parity  {parity}" for parity in graph.parity)


def _engine(path: Path) -> Iterator[str]:
    manifest = Manifest.read(path)
    manifest.check_file(path)
    layers = manifest.layers
    yield from _table(
        {
            "file": path,
            "kind": f"{manifest.flavour} {manifest.version} engine, {manifest.engine['bytes'] / 1e6:.1f} MB",
            "precision": manifest.precision,
            "sizes": ", ".join(f"{corner} {'x'.join(map(str, s))}" for corner, s in manifest.shapes.items()),
            "compute capability": ", ".join(manifest.compute_capabilities),
            "built on": manifest.device or "a machine without its GPU",
            "built": f"{manifest.built}, in {manifest.build_seconds:.0f} s",
            "plugins": ", ".join(manifest.plugins) or "none",
            "weights": manifest.weights,
            "config": manifest.config,
            "training": manifest.training,
            "largest activation": f"{manifest.largest_activation:.4g}",
            "versions": manifest.versions,
        }
    )
    yield from (f"parity of its graph  {Parity.from_dict(entry)}" for entry in manifest.graph_parity)
    yield from (f"parity on {gpu}  {Parity.from_dict(entry)}" for gpu, entry in manifest.parity.items())
    if manifest.check is None and not manifest.parity:
        yield "parity  not verified, and no check pair to do it with"
    elif not manifest.parity:
        yield "parity  not verified yet: the first Fuser that opens it on its GPU does that"
    precisions = Counter(layer["precision"] or "none" for layer in layers["list"])
    yield f"layers  {layers['count']}, of which {layers['reformats']} only rearrange: {json.dumps(dict(precisions))}"
    for layer in layers["list"][:MOST_LAYERS]:
        yield f"  {layer['precision'] or '-':9} {layer['kind']:16} {layer['name']}"
    if len(layers["list"]) > MOST_LAYERS:
        yield f"  and {len(layers['list']) - MOST_LAYERS} more, in the manifest"


def describe(path: Path) -> Iterator[str]:
    """Lines on the file `path`.

    Raises:
        EngineError: it is none of ours, or damaged.
    """
    kinds = {".safetensors": _weights, ".onnx": _onnx, ".engine": _engine}
    if not path.is_file():
        raise EngineError(f"{path}: is a folder" if path.is_dir() else f"{path}: no such file")
    if path.suffix.lower() not in kinds:
        raise EngineError(f"{path}: cannot be inspected; give a .safetensors, .onnx or .engine file")
    return kinds[path.suffix.lower()](path)
