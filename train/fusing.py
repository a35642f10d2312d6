"""Stage II: the fusion network learns to fuse the frozen denoiser's features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmfnet_fast.errors import warn
from dmfnet_fast.model import DMFNet, save_model
from dmfnet_fast.model.weights import load_denoiser, weights_hash
from dmfnet_fast.schedule import FUSION_TIMESTEPS, level_interval, linear_alpha_bar
from train import loop
from train.data import CropSampler, fingerprint, load_pairs
from train.losses import hybrid_loss
from train.recipe import Run


def random_levels(pairs: int, random: np.random.Generator) -> Tensor:
    """Levels (3, pairs), float64, uniform in the interval of each fusion timestep."""
    low, high = level_interval(linear_alpha_bar(), np.array(FUSION_TIMESTEPS))
    return torch.from_numpy(random.uniform(low[:, None], high[:, None], size=(len(low), pairs)))


def train_fusion(run: Run, denoiser_path: Path) -> int:
    """Train the fusion network and write `dmfnet.safetensors`; returns how many steps are done."""
    recipe = run.recipe
    denoiser = load_denoiser(denoiser_path)
    stage1 = denoiser.record.get("stage1", {})
    if stage1.get("steps_done", 0) < stage1.get("steps", 0):
        warn(f"{denoiser_path}: its training stopped at step {stage1.get('steps_done', 0)} of {stage1['steps']}")
    pairs = load_pairs(run.data, "train", recipe.crop)
    sampler = CropSampler(pairs, recipe.crop)
    model = DMFNet(denoiser.config)
    loop.prepare(model, run)
    model.denoiser.load_state_dict(denoiser.state_dict())
    # Frozen, and without dropout: its features are an input here.
    model.denoiser.requires_grad_(False).eval()
    features = torch.compile(model.features) if run.compiled else model.features
    fusion = torch.compile(model.fusion) if run.compiled else model.fusion

    def loss_of(random: np.random.Generator) -> Tensor:
        a, b = sampler.pairs(recipe.batch, random).to(run.device)
        noise = torch.randn((len(FUSION_TIMESTEPS), 2, *a.shape), device=run.device)
        with loop.autocast(run):
            with torch.no_grad():
                inputs = features(a, b, noise, random_levels(recipe.batch, random).to(run.device))
            fused = fusion(*inputs)
        return hybrid_loss(fused.float(), a, b)

    identity = {
        "stage": 2,
        "denoiser": weights_hash(denoiser.state_dict()),
        "data": fingerprint(pairs),
        "bf16": run.bf16,
        **vars(recipe),
    }
    done = loop.train(model.fusion, run, loss_of, "stage II", identity)
    model.record = {**denoiser.record, "stage2": {**identity, "pairs": len(pairs), "steps_done": done}}
    save_model(model, run.out / "dmfnet.safetensors")
    return done
