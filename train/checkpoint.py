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
from train.losses import loss_name


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


def _setting(key: str, identity: dict[str, Any], theirs: dict[str, Any]) -> str:
    """A setting in which two runs differ: its key, and for losses with different names, both."""
    if key == "loss" and key in identity and key in theirs:
        ours, other = loss_name(identity), loss_name(theirs)
        if ours != other:
            return f"loss: {other} there, {ours} here"
    return key


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
    theirs = state["identity"]
    other = [key for key in sorted(identity.keys() | theirs.keys()) if identity.get(key) != theirs.get(key)]
    if other:
        named = ", ".join(_setting(key, identity, theirs) for key in other)
        raise DMFNetError(f"{path}: belongs to a run with other settings ({named}); use another --out")
    return state
