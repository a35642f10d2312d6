"""Widening of a trained network that keeps its function (Net2Net: Chen, Goodfellow and Shlens 2016)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from dmfnet_fast.model import DMFNet, ModelConfig
from dmfnet_fast.model.denoiser import Block, Upsample
from dmfnet_fast.model.rewrites import of_kind

# Equal copies of a channel would get equal gradients for ever, so their weights in the next layer differ, by up to this
# fraction before normalization.
DIFFERENCE = 0.5


def _inputs_of(name: str, model: DMFNet) -> list[int] | None:
    """Channels of the two concatenated inputs of an up-path block, or None for a layer with a single input."""
    if ".ups." not in f".{name}":
        return None
    number = int(name.split("ups.")[1].split(".")[0])
    ups = model.denoiser.ups
    block = ups[number]
    if not isinstance(block, Block) or not any(part in name for part in ("block1", "res_conv")):
        return None
    before = ups[number - 1] if number else model.denoiser.mid[-1]
    # Upsampling keeps the number of channels of the preceding block.
    before = ups[number - 2] if isinstance(before, Upsample) else before
    assert isinstance(before, Block)
    from_below = of_kind(before.res_block.block2.block[3], nn.Conv2d).out_channels
    return [from_below, of_kind(block.res_block.block1.block[0], nn.GroupNorm).num_channels - from_below]


def _repeated(tensor: Tensor, dim: int, times: int, parts: list[int] | None = None) -> Tensor:
    """Repeats the channels along `dim` `times` times, within each concatenated part."""
    pieces = tensor.split(parts, dim) if parts is not None and sum(parts) == tensor.shape[dim] else [tensor]
    return torch.cat([piece for part in pieces for piece in [part] * times], dim)


def widen(model: DMFNet, config: ModelConfig, seed: int = 0) -> DMFNet:
    """Returns a network with more channels that gives nearly the same images.

    Every channel is repeated, and the next layer's weights for its copies are unequal shares of the original weight,
    so that the copies can learn different things. The function differs slightly where a GroupNorm's groups span the
    boundary of concatenated tensors, and by float16 rounding in training.

    Args:
        model: the trained network.
        config: configuration whose channels and groups are the same multiple of the model's, with its timesteps.
        seed: seed of the shares.

    Raises:
        ValueError: `config` is not such a multiple.
    """
    old = model.config
    times = config.channels // old.channels
    if config != replace(old, channels=old.channels * times, norm_groups=old.norm_groups * times) or times < 2:
        raise ValueError(f"{config}: is not a multiple of {old}")
    wide = DMFNet(config)
    generator = torch.Generator().manual_seed(seed)
    wanted = wide.state_dict()
    result = {}
    for name, tensor in model.state_dict().items():
        shape = wanted[name].shape
        parts = _inputs_of(name, model)
        if name == "denoiser.noise_level_mlp.1.weight":
            # Frequencies are f_j = exp(-ln(1e4) j / (C / 2)): every `times`-th of the wider embedding is an old one.
            spread = torch.zeros(tensor.shape[0], *shape[1:])
            spread[:, ::times] = tensor
            result[name] = _repeated(spread, 0, times)
            continue
        if tensor.dim() == 1:
            result[name] = _repeated(tensor, 0, times, parts) if len(shape) and shape != tensor.shape else tensor
            continue
        value = tensor
        if shape[1] != tensor.shape[1]:
            timesteps = [tensor.shape[1] // len(old.timesteps)] * len(old.timesteps)
            inputs = timesteps if name.startswith("fusion") and _is_merge(name) else parts
            copies = [_repeated(tensor, 1, 1, inputs)] * times
            value = _shared(torch.stack(copies), inputs, times, generator)
        if shape[0] != tensor.shape[0]:
            rows = [tensor.shape[0] // 3] * 3 if name.endswith("qkv.weight") else None
            value = _repeated(value, 0, times, rows)
        if name.endswith("qkv.weight"):
            # q k^T sums `times` as many terms but is divided by sqrt(C), which only grows by sqrt(times).
            value = value.clone()
            value[: shape[0] // 3] /= math.sqrt(times)
        result[name] = value
    wide.load_state_dict(result)
    wide.record, wide.denoiser.record = model.record, model.denoiser.record
    return wide.eval()


def _is_merge(name: str) -> bool:
    """Whether `name` is the first convolution of a timestep merge: fusion.decoder.EVEN.block.0."""
    _, _, number, *rest = name.split(".")
    return int(number) % 2 == 0 and rest[:2] == ["block", "0"] if number.isdigit() else False


def _shared(copies: Tensor, parts: list[int] | None, times: int, generator: torch.Generator) -> Tensor:
    """Joins a weight (copies, out, in, ...) into (out, copies x in, ...), scaled by random shares that sum to 1."""
    shares = 1 + DIFFERENCE * (2 * torch.rand(copies.shape, generator=generator) - 1)
    shares = shares / shares.sum(0)
    weighted = copies * shares
    sizes = parts if parts is not None and sum(parts) == copies.shape[2] else [copies.shape[2]]
    pieces = weighted.split(sizes, 2)
    return torch.cat([piece[n] for piece in pieces for n in range(times)], dim=1)
