"""Weights made by rule, as the golden files have them; for benchmarks too, so pytest is not needed."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from dmfnet_fast.model import DMFNet, preset

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_SEED = 20250323
# What the published checkpoint puts before the denoiser's names.
PREFIXES = {"denoiser": "denoise_fn.", "fusion": ""}


def rule_tensor(name: str, shape: list[int]) -> torch.Tensor:
    """The golden files' weights: see tests/golden/README.md."""
    rng = np.random.default_rng([GOLDEN_SEED, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape)
    if name.endswith("weight") and len(shape) >= 2:
        gain = 0.3 if name.startswith("rgb_decode1") else 0.7
        values = values * np.sqrt(2.0 / np.prod(shape[1:])) * gain
    elif name.endswith("weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


def golden_model() -> DMFNet:
    """The network that the golden files are of, without the checkpoints and their conversion."""
    model = DMFNet(preset("base"))
    state = {}
    for name, tensor in model.state_dict().items():
        part, own = name.split(".", 1)
        state[name] = rule_tensor(PREFIXES[part] + own, list(tensor.shape))
    model.load_state_dict(state)
    return model.eval()
