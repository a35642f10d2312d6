"""Checkpoints of training runs: written atomically, and read without executing code from the file."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.errors import DMFNetError


class Checkpoint(TypedDict):
    """Everything that the next step depends on.

    `identity` holds, in plain types, everything that determines the run's result.
    """

    identity: dict[str, Any]
    step: int
    optimizer: dict[str, Any]
    parameters: list[Tensor]
    average: list[Tensor]
    validation: dict[str, float] | None


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Replaces the checkpoint at `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    # torch.save writes to memory: its own file writer does not report a full disk as an OSError.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, identity: dict[str, Any]) -> Checkpoint:
    """Reads the checkpoint at `path` onto the CPU, and checks that it belongs to the run that `identity` describes.

    Raises:
        OSError: the file cannot be read.
        DMFNetError: the file is damaged, or belongs to a run with other settings, which the message names.
    """
    try:
        state: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not state.keys() >= Checkpoint.__required_keys__:
            raise ValueError("not a training checkpoint")
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise DMFNetError(f"{path}: the checkpoint is damaged; delete it or use another --out") from error
    saved = state["identity"]
    different = [key for key in sorted(identity.keys() | saved.keys()) if identity.get(key) != saved.get(key)]
    if different:
        raise DMFNetError(f"{path}: belongs to a run with other settings ({', '.join(different)}); use another --out")
    return state
