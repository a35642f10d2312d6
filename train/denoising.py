"""Stage I: training the denoiser to reconstruct clean images from noisy ones."""

from __future__ import annotations

import sys

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dmfnet_fast.config import DMFNET_PRESETS
from dmfnet_fast.diffusion.schedule import TIMESTEPS, cosine_alpha_bar, level_interval, sigma_of
from dmfnet_fast.errors import EngineError
from dmfnet_fast.images.io import to_8_bit
from dmfnet_fast.images.montage import montage
from dmfnet_fast.images.padding import STRIDE
from dmfnet_fast.model import Denoiser, save_model
from dmfnet_fast.model.weights import load_denoiser
from train import loop
from train.data import CropSampler, Pair, load_pairs, split, summary
from train.recipe import Run
from train.task import Draw, Task

# Timesteps that are validated, from nearly clean to mostly noise, and those shown as images.
VALIDATION_TIMESTEPS = (50, 200, 600, 1200)
SHOWN_TIMESTEPS = (200, 600)


def diffuse(images: Tensor, s: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Noisy images s x + sigma n.

    Args:
        images: clean, (N, 1, H, W) in [-1, 1].
        s, sigma: sqrt(alpha_bar) and sqrt(1 - alpha_bar) for each image, (N, 1).
        noise: standard normal, shaped like `images`.
    """
    return s[..., None, None] * images + sigma[..., None, None] * noise


def with_sigma(level: NDArray[np.float64]) -> NDArray[np.float32]:
    """Stacks levels s (...) and their sigmas, (2, ..., 1) float32.

    Sigma is computed from a float64 s: 1 - s^2 cancels, and a float32 s would lose its significant digits.
    """
    return np.stack([level, sigma_of(level)])[..., None].astype(np.float32)


def random_levels(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Draws `count` levels, each uniform in the interval of a random timestep of the cosine schedule."""
    low, high = level_interval(cosine_alpha_bar(), random.integers(1, TIMESTEPS + 1, size=count))
    return random.uniform(low, high)


class Denoising(Task):
    """The task of stage I."""

    name, label = "stage1", "stage I"

    def __init__(self, run: Run, preset_name: str, accelerator: Accelerator) -> None:
        start = None if run.init is None else load_denoiser(run.init)
        if start is not None and start.config != DMFNET_PRESETS[preset_name]:
            raise EngineError(
                f"{run.init}: is not of preset {preset_name}; pass the preset that it was trained with as --preset"
            )
        pairs = load_pairs(run.data, run.recipe.crop)
        training, self.validation = split(pairs)
        accelerator.print(summary(pairs, training), file=sys.stderr)
        self.run, self.device = run, accelerator.device
        self.sampler = CropSampler(training, run.recipe.crop)
        self.network: Denoiser = Denoiser(DMFNET_PRESETS[preset_name])
        loop.initialize(self.network, run, accelerator)
        if start is not None:
            self.network.load_state_dict(start.state_dict())
        self.identity = {
            "stage": 1,
            "preset": preset_name,
            "init": loop.started_from(start, "stage1"),
            **loop.common_identity(run, pairs, training),
        }

    def loss(self, network: nn.Module, draw: Draw) -> Tensor:
        batch, crop = self.run.recipe.batch, self.run.recipe.crop
        images = self.sampler.pairs(batch, draw).flatten(0, 1)
        level = random_levels(2 * batch, draw.random).reshape(2, batch)[:, draw.share].ravel()
        s, sigma = draw.upload(with_sigma(level))
        noise = draw.normal(2, batch, 1, crop, crop)[:, draw.share].flatten(0, 1)
        noisy = diffuse(images, s, sigma, noise)
        with loop.autocast(self.run):
            reconstruction = network(noisy.contiguous(memory_format=torch.channels_last), s)
        return F.mse_loss(reconstruction.float(), images)

    @property
    def scores(self) -> list[str]:
        return [f"reconstruction error/t = {t}" for t in VALIDATION_TIMESTEPS] if self.validation else []

    def _reconstruct(self, pair: Pair, timesteps: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Clean, noisy and reconstructed images, (2 T, 1, H, W) each: all timesteps for a, then for b."""
        height, width = (size - size % STRIDE for size in pair.a.shape)
        clean = torch.from_numpy(np.stack([pair.a, pair.b])[:, None, :height, :width]).float().div(127.5).sub(1)
        clean = clean.repeat_interleave(len(timesteps), dim=0)
        low, high = level_interval(cosine_alpha_bar(), np.array(timesteps * 2))
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        s, sigma = torch.from_numpy(with_sigma((low + high) / 2))
        noisy = diffuse(clean, s, sigma, noise)
        with torch.no_grad(), loop.exact():
            return clean, noisy, self.network(noisy.to(self.device), s.to(self.device)).cpu()

    def validate(self, part: int, parts: int) -> Tensor:
        """Sums and counts of the mean squared errors of both images' reconstructions, for luminances in [-1, 1]."""
        sums = torch.zeros(len(VALIDATION_TIMESTEPS), 2, dtype=torch.float64)
        for pair in self.validation[part::parts]:
            clean, _, reconstruction = self._reconstruct(pair, VALIDATION_TIMESTEPS)
            errors = (reconstruction - clean).square().mean(dim=(1, 2, 3)).reshape(2, len(VALIDATION_TIMESTEPS)).sum(0)
            sums += torch.stack([errors.double(), torch.full_like(errors, 2.0, dtype=torch.float64)], dim=1)
        return sums

    def images(self) -> NDArray[np.uint8]:
        """Rows: an MRI and the other image per modality; columns: clean, then noisy and reconstructed images."""
        rows = []
        for pair in {pair.modality: pair for pair in self.validation}.values():
            clean, noisy, reconstruction = (
                to_8_bit(images[:, 0].numpy(), (-1.0, 1.0)) for images in self._reconstruct(pair, SHOWN_TIMESTEPS)
            )
            for first in (0, len(SHOWN_TIMESTEPS)):
                columns = [(noisy[first + n], reconstruction[first + n]) for n in range(len(SHOWN_TIMESTEPS))]
                rows.append([clean[first], *(image for column in columns for image in column)])
        return montage(
            rows, ["clean", *(f"{kind}, t = {t}" for t in SHOWN_TIMESTEPS for kind in ("noisy", "reconstructed"))]
        )


def train_denoiser(run: Run, preset_name: str) -> int:
    """Trains the denoiser and writes `denoiser.safetensors`; returns the number of completed steps."""
    with loop.joined(run) as accelerator:
        task = Denoising(run, preset_name, accelerator)
        record = loop.train(task, run, accelerator)
        if accelerator.is_main_process:
            task.network.record = {task.name: record}
            save_model(task.network, run.out / "denoiser.safetensors")
    return int(record["steps_done"])
