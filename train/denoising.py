"""Stage I: the denoiser learns to reconstruct clean images from noisy ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dmfnet_fast.files import make_folder
from dmfnet_fast.model import Denoiser, preset, save_model
from dmfnet_fast.schedule import TIMESTEPS, cosine_alpha_bar, level_interval, sigma_of
from train import loop
from train.data import CropSampler, load_pairs


def diffuse(images: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images (N, 1, H, W) and their levels (N, 1): a timestep, a level in its interval and noise for each."""
    t = random.integers(1, TIMESTEPS + 1, size=len(images))
    low, high = level_interval(cosine_alpha_bar(), t)
    level = random.uniform(low, high)
    s, sigma = (torch.from_numpy(v).to(images)[:, None] for v in (level, sigma_of(level)))
    noise = torch.randn_like(images)
    return s[..., None, None] * images + sigma[..., None, None] * noise, s


def train_denoiser(
    data: Path,
    out: Path,
    preset_name: str,
    settings: dict[str, Any],
    minutes: float | None,
    bf16: bool,
    compiled: bool,
    device_name: str,
) -> bool:
    """Train the denoiser and write `out/denoiser.safetensors`; returns whether all steps are done."""
    recipe = loop.Recipe(**settings)
    device = torch.device(device_name)
    model = Denoiser(preset(preset_name))
    loop.initialise(model, recipe.seed)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    pairs = load_pairs(data, "train", recipe.crop)
    sampler = CropSampler(pairs, recipe.crop)
    network = torch.compile(model) if compiled else model

    def loss_of(random: np.random.Generator) -> Tensor:
        # Half of the images are MRIs and half the other modalities, as in the published pairs.
        images = sampler.pairs((recipe.batch + 1) // 2, random).flatten(0, 1)[: recipe.batch].to(device)
        noisy, level = diffuse(images, random)
        with loop.autocast(device, bf16):
            reconstruction = network(noisy.contiguous(memory_format=torch.channels_last), level)
        return F.mse_loss(reconstruction.float(), images)

    make_folder(out)
    done = loop.run(model, recipe, loss_of, out, minutes, "stage I")
    model.record = {"stage1": {"preset": preset_name, "pairs": len(pairs), **vars(recipe)}}
    save_model(model, out / "denoiser.safetensors")
    return done
