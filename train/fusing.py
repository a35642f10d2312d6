"""Stage II: trains the fusion network of DM-FNet on the features of a denoiser, or a student network on its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.network_inputs import network_inputs
from dmfnet_fast.config import ModelConfig, NetworkConfig, StudentConfig
from dmfnet_fast.diffusion.schedule import fusion_levels, level_interval, linear_alpha_bar
from dmfnet_fast.errors import EngineError, warn
from dmfnet_fast.images.color import DEFAULT_RULES, EIGHT_BIT, Canvas, to_network
from dmfnet_fast.images.montage import montage
from dmfnet_fast.images.rules import Interval, chroma_of, color_interval, common, neighborhood_interval, within
from dmfnet_fast.model import Denoiser, DMFNet, Network, Student, load_model, preset, save_model
from dmfnet_fast.model.denoiser import TAPS, UP_BLOCKS, Block
from dmfnet_fast.model.rewrites import of_kind
from dmfnet_fast.model.weights import load_denoiser, weights_hash
from train import loop
from train.data import GAIN, GAMMA, INVERTED, MODALITIES, VARIED, CropSampler, Pair, load_pairs, split, summary, varied
from train.losses import hybrid_loss, loss_identity, loss_named
from train.recipe import DEFAULT_LOSS, Run
from train.task import Draw, Task
from train.widen import widen

# Fraction of the pairs for which a network that takes the interval sees other rules than the default ones. It has to
# work under all rules, but best under the default ones.
OTHER_RULES = 0.15
# Weight of the mean distance to the interval, added to every loss. Values outside the interval are clamped, so the loss
# itself has no gradient there.
DISTANCE_WEIGHT = 0.5
# Initial scale of the second convolution in each block of a student: residual blocks begin near the identity.
SMALL_START = 0.3


def random_levels(timesteps: tuple[int, ...], pairs: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Random noise levels, (timesteps, pairs) in float64, uniform in the interval of each timestep."""
    low, high = level_interval(linear_alpha_bar(), np.array(timesteps))
    return random.uniform(low[:, None], high[:, None], size=(len(low), pairs))


def start_fusion(fusion: nn.Module, start: nn.Module) -> None:
    """Initializes a fusion network from one of the same widths, which may have other timesteps.

    The features of an image are nearly the same at all of these small timesteps. Every timestep therefore begins with
    the mean over the timesteps of `start`, times the ratio of its number of timesteps to that of `fusion`. The
    convolution of the interval begins with zeros if `start` has none.
    """
    ours = fusion.state_dict()
    weights = {name: weight.clone() for name, weight in start.state_dict().items() if name in ours}
    weights |= {name: torch.zeros_like(weight) for name, weight in ours.items() if name not in weights}
    for name, weight in weights.items():
        if weight.shape != ours[name].shape:  # a timestep merge, (D, timesteps x D, 1, 1)
            width = weight.shape[0]
            count = ours[name].shape[1] // width
            weights[name] = weight.unflatten(1, (-1, width)).sum(1).div(count).repeat(1, count, 1, 1)
    fusion.load_state_dict(weights)


def unfreeze_up_path(denoiser: Denoiser) -> None:
    """Makes the part of the up-path trainable whose features the fusion network uses."""
    blocks = 0
    for module in denoiser.ups:
        module.requires_grad_()
        blocks += isinstance(module, Block)
        if blocks == UP_BLOCKS - min(TAPS):
            break
    # On a CPU, in channels-last, the backward pass of group_norm in PyTorch 2.13 crashes if the scale requires a
    # gradient and the input does not. The input of this norm is the output of the frozen part.
    first = denoiser.ups[0]
    assert isinstance(first, Block)
    first.res_block.block1.block[0].requires_grad_(False)


@dataclass(frozen=True)
class ValidationPair:
    """A validation pair, prepared to be fused as `Fuser` does."""

    pair: Pair
    canvas: Canvas


def fuse_pair(model: Network, held: ValidationPair, device: torch.device) -> tuple[float, list[NDArray[np.uint8]]]:
    """Fuses a pair as `Fuser` does, with the fixed noise and levels of inference, in float32.

    Returns:
        The hybrid loss of the saved image's luminance, which includes the effects of the rules and of rounding; and
        three images: a, b and the fused one.
    """
    inputs, inside = network_inputs(interface_of(model.config.to_dict()), [held.canvas])
    with torch.no_grad(), loop.exact():
        fused = model(**{name: torch.tensor(array, device=device) for name, array in inputs.items()})[0, 0].cpu()
    image = held.canvas.finish(fused.numpy()[inside])
    luminances = (to_network(image, EIGHT_BIT), held.canvas.a, held.canvas.b)
    objective = hybrid_loss(*(torch.from_numpy(luminance)[None, None] for luminance in luminances))
    return objective.item(), [held.pair.a, held.pair.colors, image]


def intervals(planes: Tensor, kept_chroma: Tensor, invention: Tensor) -> Tensor:
    """The interval of each pixel, as in `Canvas`.

    Args:
        planes: (5, N, 1, H, W) in 0..255, see `data.Pair`.
        kept_chroma: fraction of the chroma to keep, (N, 1, 1, 1), 0 to 1.
        invention: whether invention is allowed, (N, 1, 1, 1), bool.

    Returns:
        Lowest and highest luminance, (N, 2, H, W) in [-1, 1].
    """
    black, white = EIGHT_BIT
    color = color_interval(chroma_of(*planes[2:]), kept_chroma, black, white, whole=True)
    near = neighborhood_interval(planes[0], planes[1])
    near = Interval(near.lowest.masked_fill(invention, black), near.highest.masked_fill(invention, white))
    return torch.cat(common(color, near), dim=1).div(127.5).sub(1)


def drawn_rules(pairs: int, random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draws for each pair the fraction of chroma to keep and whether invention is allowed, (pairs, 1, 1, 1) each."""
    other, kept, invention = random.random((3, pairs, 1, 1, 1))
    other = other < OTHER_RULES
    kept = np.where(other, kept, DEFAULT_RULES.kept_chroma).astype(np.float32)
    return kept, np.where(other, invention < 0.5, DEFAULT_RULES.invention)


def start_student(student: Student) -> None:
    """Makes an initialized student begin with the brighter source, and its blocks near the identity."""
    for block in student.blocks:
        of_kind(of_kind(block, nn.Sequential)[2], nn.Conv2d).weight.data.mul_(SMALL_START)
    nn.init.zeros_(student.last.weight)


def _start(run: Run, preset_name: str | None) -> tuple[Network | None, NetworkConfig | None]:
    """The network of --init, widened if the preset is wider; and the configuration to train, None if still open."""
    config = None if preset_name is None else preset(preset_name)
    if run.init is None:
        return None, config
    start = load_model(run.init)
    if isinstance(start, Student) or isinstance(config, StudentConfig):
        if config is not None and config != start.config:
            raise EngineError(
                f"{run.init}: is not of preset {preset_name}; students start from their own weights alone"
            )
        return start, start.config
    start.denoiser.record = {name: made for name, made in start.record.items() if name == "stage1"}
    if config is not None and config.channels > start.config.channels:
        try:
            wide = replace(start.config, channels=config.channels, norm_groups=config.norm_groups)
            start = widen(start, wide, run.recipe.seed)
        except ValueError as error:
            raise EngineError(f"{run.init}: cannot become {preset_name}: {error}") from error
    return start, config


def _same_widths(one: ModelConfig, other: ModelConfig) -> bool:
    return (one.channels, one.norm_groups) == (other.channels, other.norm_groups)


@dataclass(frozen=True)
class _Begun:
    """A network with its initial weights, and the part of the run's identity that describes them."""

    model: Network
    identity: dict[str, Any]


def _student(
    run: Run, config: StudentConfig, start: Student | None, denoiser_path: Path | None, unfreeze: bool,
    accelerator: Accelerator,
) -> _Begun:  # fmt: skip
    if denoiser_path is not None or unfreeze:
        raise EngineError("a student has no denoiser: leave --denoiser and --unfreeze out")
    model = Student(config)
    loop.initialize(model, run, accelerator)
    if start is None:
        start_student(model)
    else:
        model.load_state_dict(start.state_dict())
    return _Begun(model, {"student": config.to_dict()})


def _dmfnet(
    run: Run, config: ModelConfig | None, preset_name: str | None, start: DMFNet | None, denoiser_path: Path | None,
    unfreeze: bool, accelerator: Accelerator,
) -> _Begun:  # fmt: skip
    if denoiser_path is not None:
        source, denoiser = denoiser_path, load_denoiser(denoiser_path)
    elif run.init is not None and start is not None:
        source, denoiser = run.init, start.denoiser
    else:
        raise EngineError(
            "no denoiser: give the result of stage 1 as --denoiser FILE, or weights with one as --init FILE; "
            "a student, such as --preset nano, needs none"
        )
    if start is not None and not _same_widths(start.config, denoiser.config):
        raise EngineError(f"{run.init}: is of another size than the denoiser in {source}; use two of one preset")
    config = config or (start or denoiser).config
    if not _same_widths(config, denoiser.config):
        raise EngineError(f"{source}: is not of the size of preset {preset_name}; leave --preset out or give another")
    stage1 = denoiser.record.get("stage1", {})
    if stage1.get("steps_done", 0) < stage1.get("steps", 0) and accelerator.is_main_process:
        warn(f"{source}: its training stopped at step {stage1.get('steps_done', 0)} of {stage1['steps']}")
    model = DMFNet(config)
    loop.initialize(model, run, accelerator)
    model.denoiser.load_state_dict(denoiser.state_dict())
    if start is not None:
        start_fusion(model.fusion, start.fusion)
    if config.interval and not (start is not None and start.config.interval):
        # With zeros in the last layer the network begins with the brighter source.
        for parameter in model.fusion.rgb_decode1.parameters():
            nn.init.zeros_(parameter)
    model.denoiser.requires_grad_(False)
    if unfreeze:
        unfreeze_up_path(model.denoiser)
    model.record = denoiser.record
    identity = {
        "timesteps": list(config.timesteps),
        "noise": config.noise,
        "interval": config.interval,
        "denoiser": weights_hash(denoiser.state_dict()),
        "unfrozen": "up-path" if unfreeze else "nothing",
    }
    return _Begun(model, identity)


class Fusing(Task):
    """The task of stage II."""

    name, label = "stage2", "stage II"

    def __init__(
        self, run: Run, denoiser_path: Path | None, preset_name: str | None, unfreeze: bool, accelerator: Accelerator,
        loss: str = DEFAULT_LOSS,
    ) -> None:  # fmt: skip
        self._loss = loss_named(loss)
        start, config = _start(run, preset_name)
        if isinstance(config, StudentConfig):
            assert start is None or isinstance(start, Student)
            begun = _student(run, config, start, denoiser_path, unfreeze, accelerator)
        else:
            assert start is None or isinstance(start, DMFNet)
            begun = _dmfnet(run, config, preset_name, start, denoiser_path, unfreeze, accelerator)
        pairs = load_pairs(run.data, run.recipe.crop)
        training, validation = split(pairs)
        self.validation = [ValidationPair(pair, Canvas(pair.a, pair.colors)) for pair in validation]
        accelerator.print(summary(pairs, training), file=sys.stderr)
        self.run, self.device = run, accelerator.device
        self.sampler = CropSampler(training, run.recipe.crop)
        self.network = self.model = begun.model
        # Evaluation mode turns dropout off: the denoiser is a fixed feature extractor, apart from an unfrozen up-path.
        self.model.eval()
        self.identity = {
            "stage": 2,
            "init": loop.started_from(None if run.init is None else load_model(run.init), "stage2"),
            "varied": {"part": VARIED, "gamma": list(GAMMA), "gain": list(GAIN), "inverted": INVERTED},
            "loss": {"distance": DISTANCE_WEIGHT, "other rules": OTHER_RULES, **loss_identity(loss)},
            **begun.identity,
            **loop.common_identity(run, pairs, training),
        }

    def loss(self, network: nn.Module, draw: Draw) -> Tensor:
        """Loss of the luminance that would be saved, after both rules, plus the weighted distance that they move it."""
        batch, crop = self.run.recipe.batch, self.run.recipe.crop
        planes = varied(self.sampler.planes(batch, draw), batch, draw)
        a, b = planes[:2].div(127.5).sub(1)
        kept, invention = (draw.upload(values[draw.share]) for values in drawn_rules(batch, draw.random))
        config = self.model.config
        interface = interface_of(config.to_dict())
        given: dict[str, Tensor | bool] = {}
        if isinstance(config, ModelConfig):
            # Fixed levels are uploaded here too: if the network copied them itself, the host would wait for the GPU in
            # every step.
            levels = (
                random_levels(config.timesteps, batch, draw.random)
                if config.noise
                else np.array([[level] * batch for level, _ in fusion_levels(config.timesteps)])
            )
            given["levels"] = draw.upload(levels[:, draw.share])
            if config.noise:
                given["noise"] = draw.normal(interface.timesteps, 2, batch, 1, crop, crop)[:, :, draw.share]
        if not interface.interval:
            kept, invention = (
                torch.full_like(kept, DEFAULT_RULES.kept_chroma),
                torch.full_like(invention, DEFAULT_RULES.invention),
            )
        interval = intervals(planes, kept, invention)
        if interface.interval:
            given |= {"interval": interval, "bounded": False}
        with loop.autocast(self.run):
            fused = network(a, b, **given).float()
        with loop.exact():
            saved = within(fused, Interval(*interval.split(1, dim=1)))
            outside = (fused - saved).abs().mean()
            return self._loss.of(saved, a, b) + DISTANCE_WEIGHT * outside

    @property
    def scores(self) -> list[str]:
        present = {held.pair.modality for held in self.validation}
        return [f"objective/{modality}" for modality in MODALITIES if modality in present]

    def validate(self, part: int, parts: int) -> Tensor:
        """Hybrid loss of the saved images, whatever loss the run trains on."""
        sums = torch.zeros(len(self.scores), 2, dtype=torch.float64)
        for held in self.validation[part::parts]:
            row = self.scores.index(f"objective/{held.pair.modality}")
            sums[row] += torch.tensor([fuse_pair(self.model, held, self.device)[0], 1.0], dtype=torch.float64)
        return sums

    def images(self) -> NDArray[np.uint8]:
        """Montage of one pair for each modality: MRI, the other image, fused."""
        pairs = {held.pair.modality: held for held in self.validation}.values()
        rows = [fuse_pair(self.model, held, self.device)[1] for held in pairs]
        return montage(rows, ["MRI", "other", "fused"])


def train_fusion(
    run: Run, denoiser_path: Path | None = None, preset_name: str | None = None, unfreeze: bool = False,
    loss: str = DEFAULT_LOSS,
) -> int:  # fmt: skip
    """Trains a fusion network and writes `dmfnet.safetensors`; returns how many steps are done.

    Args:
        denoiser_path: weights that hold the denoiser; by default the denoiser of `run.init`.
        preset_name: preset to train; by default that of the initial weights. It may have other timesteps or be wider.
        unfreeze: train the denoiser's up-path too.
        loss: name of the loss, see `losses.LOSSES`.
    """
    with loop.joined(run) as accelerator:
        task = Fusing(run, denoiser_path, preset_name, unfreeze, accelerator, loss)
        record = loop.train(task, run, accelerator)
        record["loss"] = {"name": loss, **record["loss"]}
        if accelerator.is_main_process:
            task.model.record = {**task.model.record, task.name: record}
            save_model(task.model, run.out / "dmfnet.safetensors")
    return int(record["steps_done"])
