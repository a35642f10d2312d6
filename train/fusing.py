"""Stage II: the fusion network learns to fuse the denoiser's features, at first as they are."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from dmfnet_fast import colour
from dmfnet_fast.config import ModelConfig
from dmfnet_fast.errors import EngineError, warn
from dmfnet_fast.model import Denoiser, DMFNet, load_model, preset, save_model
from dmfnet_fast.model.denoiser import TAPS, UP_BLOCKS, Block
from dmfnet_fast.model.weights import load_denoiser, weights_hash
from dmfnet_fast.montage import montage
from dmfnet_fast.noise import fusion_noise
from dmfnet_fast.padding import pad
from dmfnet_fast.pictures import read_picture
from dmfnet_fast.schedule import level_interval, linear_alpha_bar
from train import loop
from train.data import MODALITIES, CropSampler, Pair, load_pairs, split, summary
from train.losses import hybrid_loss
from train.recipe import Run
from train.task import Draw, Task
from train.widen import widen

EIGHT_BIT = (0.0, 255.0)


def random_levels(timesteps: tuple[int, ...], pairs: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Levels (timesteps, pairs), float64, uniform in the interval of each timestep."""
    low, high = level_interval(linear_alpha_bar(), np.array(timesteps))
    return random.uniform(low[:, None], high[:, None], size=(len(low), pairs))


def start_fusion(fusion: nn.Module, start: nn.Module) -> None:
    """Give a fusion network the weights of one of the same widths, which may fuse other timesteps.

    The features of one image at these small timesteps are nearly the same: every timestep begins with the mean of
    what `start` gives one, times the ratio of their numbers.
    """
    weights, ours = start.state_dict(), fusion.state_dict()
    for name, weight in weights.items():
        if weight.shape != ours[name].shape:  # of a timestep merge, (D, timesteps x D, 1, 1)
            width = weight.shape[0]
            count = ours[name].shape[1] // width
            weights[name] = weight.unflatten(1, (-1, width)).sum(1).div(count).repeat(1, count, 1, 1)
    fusion.load_state_dict(weights)


def unfreeze_up_path(denoiser: Denoiser) -> None:
    """Let the up-path learn, as far as the fusion network sees it."""
    blocks = 0
    for module in denoiser.ups:
        module.requires_grad_()
        blocks += isinstance(module, Block)
        if blocks == UP_BLOCKS - min(TAPS):
            break
    # The backward pass of PyTorch 2.13's group_norm crashes on a CPU, in channels-last, where only the scale learns
    # and not what it scales; here that is the frozen part's output.
    first = denoiser.ups[0]
    assert isinstance(first, Block)
    first.res_block.block1.block[0].requires_grad_(False)


@dataclass(frozen=True)
class Held:
    """A pair to validate on, with `b` as its file holds it."""

    pair: Pair
    b: NDArray[np.uint8]


def fuse_pair(model: DMFNet, held: Held, device: torch.device) -> tuple[float, list[NDArray[np.uint8]]]:
    """Fuse a pair as the product does, with the fixed noise and levels of inference, in float32.

    Returns:
        The hybrid loss of the saved picture's luminance, so with what recolouring clips and rounds; and the
        pictures of a, of b and fused.
    """
    sources = [colour.to_network(picture, EIGHT_BIT) for picture in (held.pair.a, held.b)]
    (padded_a, inside), (padded_b, _) = (pad(image) for image in sources)
    noise = torch.tensor(fusion_noise(0, *padded_a.shape, len(model.config.timesteps)), device=device)
    with torch.no_grad(), loop.exact():
        inputs = (torch.from_numpy(image).to(device)[None, None] for image in (padded_a, padded_b))
        fused = model(*inputs, noise)[0, 0].cpu().numpy()
    picture = colour.recolour(fused[inside], held.b, EIGHT_BIT)
    saved = colour.to_network(picture, EIGHT_BIT)
    objective = hybrid_loss(*(torch.from_numpy(image)[None, None] for image in (saved, *sources)))
    return objective.item(), [held.pair.a, held.b, picture]


def _start(run: Run, preset_name: str | None) -> tuple[DMFNet | None, ModelConfig | None]:
    """The weights of --init, made as wide as the preset if they are narrower; and the preset, if one is asked for."""
    config = None if preset_name is None else preset(preset_name)
    if run.init is None:
        return None, config
    start = load_model(run.init)
    start.denoiser.record = {name: made for name, made in start.record.items() if name == "stage1"}
    if config is not None and config.channels > start.config.channels:
        try:
            start = widen(start, replace(config, timesteps=start.config.timesteps), run.recipe.seed)
        except ValueError as error:
            raise EngineError(f"{run.init}: cannot become {preset_name}: {error}") from error
    return start, config


def _same_widths(one: ModelConfig, other: ModelConfig) -> bool:
    return replace(one, timesteps=other.timesteps) == other


class Fusing(Task):
    """The task of stage II."""

    name, label = "stage2", "stage II"

    def __init__(
        self, run: Run, denoiser_path: Path | None, preset_name: str | None, unfreeze: bool, accelerator: Accelerator
    ) -> None:
        start, config = _start(run, preset_name)
        if denoiser_path is not None:
            source, denoiser = denoiser_path, load_denoiser(denoiser_path)
        elif run.init is not None and start is not None:
            source, denoiser = run.init, start.denoiser
        else:
            raise EngineError(
                "no denoiser: give the result of stage 1 as --denoiser FILE, or weights with one as --init FILE"
            )
        if start is not None and not _same_widths(start.config, denoiser.config):
            raise EngineError(f"{run.init}: is of another size than the denoiser in {source}; use two of one preset")
        config = config or (start or denoiser).config
        if not _same_widths(config, denoiser.config):
            raise EngineError(
                f"{source}: is not of the size of preset {preset_name}; leave --preset out or give another"
            )
        stage1 = denoiser.record.get("stage1", {})
        if stage1.get("steps_done", 0) < stage1.get("steps", 0) and accelerator.is_main_process:
            warn(f"{source}: its training stopped at step {stage1.get('steps_done', 0)} of {stage1['steps']}")
        pairs = load_pairs(run.data, run.recipe.crop)
        training, validation = split(pairs)
        self.validation = [Held(pair, read_picture(pair.source)) for pair in validation]
        accelerator.print(summary(pairs, training), file=sys.stderr)
        self.run, self.device = run, accelerator.device
        self.sampler = CropSampler(training, run.recipe.crop)
        self.network = self.model = DMFNet(config)
        loop.initialise(self.model, run, accelerator)
        self.model.denoiser.load_state_dict(denoiser.state_dict())
        if start is not None:
            start_fusion(self.model.fusion, start.fusion)
        # Without dropout, and frozen: its features are an input here, until at the end its up-path joins in.
        self.model.eval()
        self.model.denoiser.requires_grad_(False)
        if unfreeze:
            unfreeze_up_path(self.model.denoiser)
        self.model.record = denoiser.record
        self.identity = {
            "stage": 2,
            "timesteps": list(config.timesteps),
            "denoiser": weights_hash(denoiser.state_dict()),
            "unfrozen": "up-path" if unfreeze else "nothing",
            "init": loop.started_from(None if run.init is None else load_model(run.init), "stage2"),
            **loop.common_identity(run, pairs, training),
        }

    def loss(self, network: nn.Module, draw: Draw) -> Tensor:
        batch, crop = self.run.recipe.batch, self.run.recipe.crop
        a, b = self.sampler.pairs(batch, draw)
        timesteps = self.model.config.timesteps
        levels = draw.upload(random_levels(timesteps, batch, draw.random)[:, draw.share])
        noise = draw.normal(len(timesteps), 2, batch, 1, crop, crop)[:, :, draw.share]
        with loop.autocast(self.run):
            fused = network(a, b, noise, levels)
        with loop.exact():
            return hybrid_loss(fused.float(), a, b)

    @property
    def scores(self) -> list[str]:
        present = {held.pair.modality for held in self.validation}
        return [f"objective/{modality}" for modality in MODALITIES if modality in present]

    def validate(self, part: int, parts: int) -> Tensor:
        """Objectives of the saved pictures."""
        sums = torch.zeros(len(self.scores), 2, dtype=torch.float64)
        for held in self.validation[part::parts]:
            row = self.scores.index(f"objective/{held.pair.modality}")
            sums[row] += torch.tensor([fuse_pair(self.model, held, self.device)[0], 1.0], dtype=torch.float64)
        return sums

    def pictures(self) -> NDArray[np.uint8]:
        """One pair of each modality: MRI, the other, fused."""
        pairs = {held.pair.modality: held for held in self.validation}.values()
        rows = [fuse_pair(self.model, held, self.device)[1] for held in pairs]
        return montage(rows, ["MRI", "other", "fused"])


def train_fusion(
    run: Run, denoiser_path: Path | None = None, preset_name: str | None = None, unfreeze: bool = False
) -> int:
    """Train the fusion network and write `dmfnet.safetensors`; returns how many steps are done.

    Args:
        denoiser_path: weights that hold the denoiser; that of `run.init` when not given.
        preset_name: what to train, if not what the weights it starts from are: of other timesteps, or wider.
        unfreeze: train the denoiser's up-path too.
    """
    with loop.joined(run) as accelerator:
        task = Fusing(run, denoiser_path, preset_name, unfreeze, accelerator)
        record = loop.train(task, run, accelerator)
        if accelerator.is_main_process:
            task.model.record = {**task.model.record, task.name: record}
            save_model(task.model, run.out / "dmfnet.safetensors")
    return int(record["steps_done"])
