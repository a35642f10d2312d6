"""Conversion of the published DM-FNet checkpoints, with strict checks, to this package's network."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dmfnet_fast.config import DMFNET_PRESETS
from dmfnet_fast.errors import EngineError
from dmfnet_fast.model.network import DMFNet
from dmfnet_fast.model.weights import check_tensors, weights_hash

DENOISER_PREFIX = "denoise_fn."


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise EngineError(f"{path}: no such file")
    if not path.is_file():
        raise EngineError(f"{path}: is not a file; give a published .pth checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise EngineError(
            f"{path}: is not a torch checkpoint of plain tensors, or is damaged ({reason[0] if reason else error!r})"
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise EngineError(f"{path}: is not a dictionary of tensors, as the published checkpoints are")
    return dict(content)


def convert_checkpoints(denoiser: str | os.PathLike[str], fusion: str | os.PathLike[str]) -> DMFNet:
    """Read the two published checkpoints into a network of the base preset, in float32 and eval mode.

    Args:
        denoiser: `I630000_E14000_gen.pth`; its tensors outside `denoise_fn.` (the noise schedule) are ignored.
        fusion: `MIF.pth`.

    Raises:
        EngineError: a file cannot be read, or tensors are missing, unknown, of another shape or type, or not finite.
    """
    denoiser, fusion = Path(denoiser), Path(fusion)
    denoiser_tensors = {
        name.removeprefix(DENOISER_PREFIX): tensor
        for name, tensor in _read_checkpoint(denoiser).items()
        if name.startswith(DENOISER_PREFIX)
    }
    fusion_tensors = _read_checkpoint(fusion)
    with torch.device("meta"):  # parameters take no memory until the tensors are assigned
        model = DMFNet(DMFNET_PRESETS["base"])
    for path, tensors, module in (
        (denoiser, denoiser_tensors, model.denoiser),
        (fusion, fusion_tensors, model.fusion),
    ):
        check_tensors(str(path), tensors, module.state_dict())
        module.load_state_dict({name: t.float().contiguous() for name, t in tensors.items()}, assign=True)
    model.record = {
        "origin": "published checkpoints",
        "denoiser": {"file": denoiser.name, "sha256": weights_hash(denoiser_tensors)},
        "fusion": {"file": fusion.name, "sha256": weights_hash(fusion_tensors)},
    }
    return model.eval()
