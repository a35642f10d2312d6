"""Stage II: the fusion network learns to fuse the frozen denoiser's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmfnet_fast.files import make_folder
from dmfnet_fast.model import DMFNet, save_model
from dmfnet_fast.model.weights import load_denoiser
from dmfnet_fast.schedule import FUSION_TIMESTEPS, level_interval, linear_alpha_bar
from train import loop
from train.data import CropSampler, load_pairs
from train.losses import hybrid_loss


def random_levels(pairs: int, random: np.random.Generator) -> Tensor:
    """Levels (3, pairs), float64, uniform in the interval of each fusion timestep."""
    low, high = level_interval(linear_alpha_bar(), np.array(FUSION_TIMESTEPS))
    return torch.from_numpy(random.uniform(low[:, None], high[:, None], size=(len(low), pairs)))


def train_fusion(
    data: Path,
    out: Path,
    denoiser_path: Path,
    settings: dict[str, Any],
    minutes: float | None,
    bf16: bool,
    compiled: bool,
    device_name: str,
) -> bool:
    """Train the fusion network and write `out/dmfnet.safetensors`; returns whether all steps are done."""
    recipe = loop.Recipe(**settings)
    device = torch.device(device_name)
    denoiser = load_denoiser(denoiser_path)
    model = DMFNet(denoiser.config)
    loop.initialise(model, recipe.seed)
    model.denoiser = denoiser.requires_grad_(False)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    model.denoiser.eval()  # no dropout: its features are an input here
    pairs = load_pairs(data, "train", recipe.crop)
    sampler = CropSampler(pairs, recipe.crop)
    features = torch.compile(model.features) if compiled else model.features
    fusion = torch.compile(model.fusion) if compiled else model.fusion

    def loss_of(random: np.random.Generator) -> Tensor:
        a, b = sampler.pairs(recipe.batch, random).to(device)
        noise = torch.randn((len(FUSION_TIMESTEPS), 2, *a.shape), device=device)
        with loop.autocast(device, bf16):
            with torch.no_grad():
                inputs = features(a, b, noise, random_levels(recipe.batch, random).to(device))
            fused = fusion(*inputs)
        return hybrid_loss(fused.float(), a, b)

    make_folder(out)
    done = loop.run(model.fusion, recipe, loss_of, out, minutes, "stage II")
    model.record = {**denoiser.record, "stage2": {"pairs": len(pairs), **vars(recipe)}}
    save_model(model, out / "dmfnet.safetensors")
    return done
