"""The target `onnx`: the graph itself is the exported file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dmfnet_fast.artifacts.onnx_metadata import seal
from export.onnx.source import Graph, Step
from export.request import Request, Tell


def check_machine(_: Request) -> None:
    """Nothing to check: `export.onnx.source` checks for the libraries that read the weights."""


def write(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> None:
    """Seal and write a graph; see `Target.write`."""
    del step, tell  # nothing here takes long
    path = folder / request.output.name
    path.write_bytes(seal(graph.content))
    path.replace(request.output)


def for_server(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> tuple[bytes, Mapping[str, str]]:
    """Return the graph of one size unchanged; see `triton_server.writer`."""
    del request, folder, step, tell
    return graph.content, {}
