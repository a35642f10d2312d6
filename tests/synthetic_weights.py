"""Weights made by rule, as the golden files have them; for benchmarks too, so pytest is not needed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.config import DMFNET_PRESETS
from dmfnet_fast.diffusion.noise import fusion_noise
from dmfnet_fast.model import DMFNet, ModelConfig, Network, StudentConfig, network_of

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_SEED = 20250323
# What the published checkpoint puts before the denoiser's names.
PREFIXES = {"denoiser": "denoise_fn.", "fusion": ""}
# A small network of each interface: the paper's, one without noise that is told the interval, a student.
SMALL: dict[str, ModelConfig | StudentConfig] = {
    "paper's": ModelConfig(channels=16, norm_groups=4),
    "no noise": ModelConfig(channels=16, norm_groups=4, timesteps=(5,), noise=False, interval=True),
    "student": StudentConfig(channels=8, blocks=2),
}


def rule_tensor(name: str, shape: Sequence[int]) -> torch.Tensor:
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
    model = DMFNet(DMFNET_PRESETS["base"])
    state = {}
    for name, tensor in model.state_dict().items():
        part, own = name.split(".", 1)
        state[name] = rule_tensor(PREFIXES[part] + own, list(tensor.shape))
    model.load_state_dict(state)
    return model.eval()


def model_by_rule(config: ModelConfig | StudentConfig) -> Network:
    """A network whose weights are made as the golden ones are: livelier than a fresh one's, whose image is flat."""
    model = network_of(config)
    names = {name: name.split(".", 1)[1] if isinstance(model, DMFNet) else name for name in model.state_dict()}
    model.load_state_dict({name: rule_tensor(names[name], t.shape) for name, t in model.state_dict().items()})
    if not isinstance(model, DMFNet):
        with torch.no_grad():
            model.last.weight.mul_(0.1)  # what is added to the brighter source is small in a trained one too
    return model.eval()


def random_inputs(
    config: ModelConfig | StudentConfig, pairs: int = 1, height: int = 64, width: int = 96, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """What a network of this configuration takes: random images and intervals, the fixed noise."""
    rng = np.random.default_rng(seed)
    interface = interface_of(config.to_dict())
    shapes = interface.shapes(pairs, height, width)
    given = {name: rng.uniform(-1, 1, shapes[name]).astype(np.float32) for name in shapes if name != "noise"}
    if interface.interval:
        given["interval"].sort(axis=1)
    if interface.timesteps:
        given["noise"] = fusion_noise(0, height, width, interface.timesteps)
    return {name: given[name] for name in interface.names}


def run_model(model: torch.nn.Module, inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """What the network makes of arrays."""
    with torch.no_grad():
        fused: NDArray[np.float32] = model(**{name: torch.tensor(array) for name, array in inputs.items()}).numpy()
    return fused
