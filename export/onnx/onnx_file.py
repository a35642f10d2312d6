"""The graph itself as what is exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dmfnet_fast.artifacts.onnx_metadata import seal
from export.onnx.source import Graph, Step
from export.request import Request, Tell


def check_machine(_: Request) -> None:
    """What it takes to read the weights, `export.onnx.source` asks for itself; nothing else is needed."""


def write(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> None:
    """Write a graph with its seal; see `Target.write`."""
    del step, tell  # nothing takes long
    path = folder / request.output.name
    path.write_bytes(seal(graph.content))
    path.replace(request.output)


def for_server(request: Request, content: bytes, step: Step, tell: Tell) -> tuple[bytes, Mapping[str, str]]:
    """The graph of one size as it is; see `Served.make`."""
    del request, step, tell
    return content, {}
