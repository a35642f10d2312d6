"""Table of the kinds of files that can be exported, and how the graph is read from each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dmfnet_fast.engines import shipped
from dmfnet_fast.engines.kinds import OPENVINO, TORCH, EngineKind, refuse_checkpoint
from dmfnet_fast.errors import EngineError
from dmfnet_fast.wording import alternatives
from export.onnx.source import Graph, Step, from_onnx, from_weights
from export.request import Request


@dataclass(frozen=True)
class Source:
    """One kind of file to export from.

    Attributes:
        kind: kind of engine that opens the file.
        words: name of the content, for messages.
        read: returns the graph for a request. Raises a DMFNetError if the file cannot be read, or if the graph does not
            compute what the network does.
    """

    kind: EngineKind
    words: str
    read: Callable[[Request, Step], Graph]


def _from_weights(request: Request, step: Step) -> Graph:
    for_engine = request.precision not in request.target.cpu_precisions
    return from_weights(
        request.source,
        request.precision,
        for_engine,
        request.profile,
        step,
        request.calibrate,
        request.every_block,
        request.plugins,
    )


def _from_onnx(request: Request, step: Step) -> Graph:
    return from_onnx(request.source, request.precision, step)


SOURCES = (Source(TORCH, "weights", _from_weights), Source(OPENVINO, "a graph", _from_onnx))


def source_of(path: Path) -> Source:
    """The kind of an existing file.

    Raises:
        EngineError: the file does not exist, or files of its kind cannot be exported.
    """
    wanted = f"give {alternatives(f'{source.words} ({source.kind.suffix})' for source in SOURCES)}"
    if path.is_dir():
        raise EngineError(f"{path}: is a folder; {wanted}")
    if not path.exists():
        raise EngineError(f"{path}: no such file, and no shipped network ({', '.join(shipped())})")
    refuse_checkpoint(path)
    for source in SOURCES:
        if path.suffix.lower() == source.kind.suffix:
            return source
    raise EngineError(f"{path}: cannot be exported; {wanted}")
