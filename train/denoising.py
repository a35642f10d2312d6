"""Stage I: the denoiser learns to reconstruct clean images from noisy ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dmfnet_fast.model import Denoiser, preset, save_model
from dmfnet_fast.schedule import TIMESTEPS, cosine_alpha_bar, level_interval, sigma_of
from train import loop
from train.data import CropSampler, fingerprint, load_pairs
from train.recipe import Run


def diffuse(images: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images (N, 1, H, W) and their levels (N, 1): a timestep, a level in its interval and noise for each."""
    t = random.integers(1, TIMESTEPS + 1, size=len(images))
    low, high = level_interval(cosine_alpha_bar(), t)
    level = random.uniform(low, high)
    s, sigma = (torch.from_numpy(v).to(images)[:, None] for v in (level, sigma_of(level)))
    noise = torch.randn_like(images)
    return s[..., None, None] * images + sigma[..., None, None] * noise, s


def train_denoiser(run: Run, preset_name: str) -> int:
    """Train the denoiser and write `denoiser.safetensors`; returns how many steps are done."""
    recipe = run.recipe
    pairs = load_pairs(run.data, "train", recipe.crop)
    sampler = CropSampler(pairs, recipe.crop)
    model = Denoiser(preset(preset_name))
    loop.prepare(model, run)
    network = torch.compile(model) if run.compiled else model

    def loss_of(random: np.random.Generator) -> Tensor:
        # Half of the images are MRIs and half the other modalities, as in the published pairs.
        images = sampler.pairs((recipe.batch + 1) // 2, random).flatten(0, 1)[: recipe.batch].to(run.device)
        noisy, level = diffuse(images, random)
        with loop.autocast(run):
            reconstruction = network(noisy.contiguous(memory_format=torch.channels_last), level)
        return F.mse_loss(reconstruction.float(), images)

    identity = {"stage": 1, "preset": preset_name, "data": fingerprint(pairs), "bf16": run.bf16, **vars(recipe)}
    done = loop.train(model, run, loss_of, "stage I", identity)
    model.record = {"stage1": {**identity, "pairs": len(pairs), "steps_done": done}}
    save_model(model, run.out / "denoiser.safetensors")
    return done
