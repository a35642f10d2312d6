"""Properties of the networks that the golden files do not cover: sizes, presets, batches, and operation counts."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dmfnet_fast.config import DMFNET_PRESETS, PRESETS, config_from_dict, preset
from dmfnet_fast.model import DMFNet, ModelConfig, Student, StudentConfig, network_of
from tests.synthetic_weights import SMALL, model_by_rule, random_inputs, run_model


@pytest.fixture(scope="module")
def tiny() -> DMFNet:
    model = model_by_rule(preset("tiny"))
    assert isinstance(model, DMFNet)
    return model


def inputs(height: int, width: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(height + width)
    images = torch.rand(2, batch, 1, height, width) * 2 - 1
    return images[0], images[1], torch.randn(3, 2, height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (160, 160), (256, 256)])
def test_sizes(tiny: DMFNet, height: int, width: int) -> None:
    """Each size in float32 against float64, which reveals a size that is computed differently."""
    a, b, noise = inputs(height, width)
    with torch.no_grad():
        fused = tiny(a, b, noise)
        precise = copy.deepcopy(tiny).double()(a.double(), b.double(), noise.double())
    assert fused.shape == (1, 1, height, width)
    assert fused.std() > 0.1
    assert (fused - precise).abs().max() <= 1e-5


def test_images_share_the_denoiser(tiny: DMFNet) -> None:
    """The denoiser treats both images alike."""
    a, b, noise = inputs(64, 96)
    with torch.no_grad():
        original = tiny.fusion(*tiny.features(a, b, noise))
        swapped = tiny.fusion(*reversed(tiny.features(b, a, noise.flip(1))))
    assert torch.equal(original, swapped)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run(name: str) -> None:
    config = preset(name)
    given = random_inputs(config, height=64, width=64)
    fused = run_model(network_of(config).eval(), given)
    assert np.isfinite(fused).all()
    if "interval" in given:
        lowest, highest = np.split(given["interval"], 2, axis=1)
        assert ((lowest <= fused) & (fused <= highest)).all()


def test_interval_changes_the_image() -> None:
    """The interval is an input of the network and not only a bound."""
    for kind in ("no noise", "student"):
        model = model_by_rule(SMALL[kind])
        given = random_inputs(SMALL[kind])
        wide = given | {"interval": np.concatenate([-np.ones_like(given["a"]), np.ones_like(given["a"])], axis=1)}
        narrower = wide | {"interval": wide["interval"] * np.float32(0.999)}
        inside = np.abs(run_model(model, wide)) < 0.9
        assert (run_model(model, wide) != run_model(model, narrower))[inside].any()


def test_reach_of_a_student() -> None:
    config = StudentConfig(channels=8, blocks=2)
    model = model_by_rule(config)
    given = random_inputs(config, height=96, width=96)
    changed = given | {"a": given["a"].copy()}
    changed["a"][..., 48, 48] += 1
    rows = np.nonzero(run_model(model, given) != run_model(model, changed))[2]
    assert config.reach - config.factor < np.abs(rows - 48).max() <= config.reach


@pytest.mark.parametrize(
    ("name", "denoiser", "fusion"),
    [("base", 20_670_081, 3_026_640), ("small", 5_178_177, 761_952), ("tiny", 1_299_873, 193_320)],
)
def test_parameter_counts(name: str, denoiser: int, fusion: int) -> None:
    model = DMFNet(DMFNET_PRESETS[name])
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.denoiser, model.fusion)]
    assert counts == [denoiser, fusion]


@pytest.mark.parametrize(
    ("name", "whole", "tail_free", "fusion"),
    [("base", 389.7, 265.0, 115.1), ("tiny", 24.42, 16.60, 7.298)],
)
def test_operations(name: str, whole: float, tail_free: float, fusion: float) -> None:
    """GFLOP at 256x256, a multiply-add counted as two; the base preset is the paper's network."""
    with torch.device("meta"):
        model = DMFNet(DMFNET_PRESETS[name])
        image, level = torch.zeros(1, 1, 256, 256), torch.zeros(1, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.denoiser(image, level)
    assert counter.get_total_flops() / 1e9 == pytest.approx(whole, rel=1e-3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = list(model.denoiser.features(image, level))
    assert counter.get_total_flops() / 1e9 == pytest.approx(tail_free, rel=1e-3)
    joined = [torch.cat([feature] * 3, dim=1) for feature in features]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.fusion(joined, joined)
    assert counter.get_total_flops() / 1e9 == pytest.approx(fusion, rel=1e-3)


def test_batch_equals_single_pairs(tiny: DMFNet) -> None:
    a, b, noise = inputs(64, 64, batch=3)
    with torch.no_grad():
        together = tiny(a, b, noise)
        alone = torch.cat([tiny(a[n : n + 1], b[n : n + 1], noise) for n in range(3)])
    # Rounding differs, as a batch and a single pair may use different algorithms.
    torch.testing.assert_close(together, alone, rtol=0, atol=5e-6)


def test_default_levels_are_the_midpoints(tiny: DMFNet) -> None:
    from dmfnet_fast.diffusion.schedule import fusion_levels

    a, b, noise = inputs(64, 64, batch=2)
    levels = torch.tensor([[level] * 2 for level, _ in fusion_levels()], dtype=torch.float64)
    per_pair = noise[:, :, None, None].expand(-1, -1, 2, -1, -1, -1)
    with torch.no_grad():
        stated = tiny.features(a, b, per_pair, levels)
        default = tiny.features(a, b, noise)
    for first, second in zip(stated[0] + stated[1], default[0] + default[1], strict=True):
        assert torch.equal(first, second)


def test_features_stop_before_the_tail(tiny: DMFNet) -> None:
    """The features do not depend on the last two residual blocks and the output convolution."""
    a, _, _ = inputs(64, 64)
    level = torch.full((1, 1), 0.99)
    with torch.no_grad():
        before = list(tiny.denoiser.features(a, level))
        for module in (*tiny.denoiser.ups[-2:], tiny.denoiser.final_conv):
            for parameter in module.parameters():
                parameter.fill_(torch.nan)
        after = list(tiny.denoiser.features(a, level))
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize(("channels", "groups"), [(40, 8), (0, 1), (32, 5)])
def test_invalid_configurations(channels: int, groups: int) -> None:
    with pytest.raises(ValueError, match=r"channels|norm_groups"):
        ModelConfig(channels, groups)


@pytest.mark.parametrize("timesteps", [(), (0,), (5, 5), (2001,)])
def test_invalid_timesteps(timesteps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="timesteps"):
        ModelConfig(32, 8, timesteps)


def test_several_timesteps_need_noise() -> None:
    with pytest.raises(ValueError, match="without noise they would all see the same images; give one"):
        ModelConfig(32, 8, noise=False)


@pytest.mark.parametrize(("channels", "blocks", "factor"), [(12, 2, 2), (0, 2, 2), (16, 0, 2), (16, 2, 3)])
def test_invalid_students(channels: int, blocks: int, factor: int) -> None:
    with pytest.raises(ValueError, match=r"channels|blocks|factor"):
        StudentConfig(channels, blocks, factor)


def test_configurations_as_json() -> None:
    for config in (*PRESETS.values(), ModelConfig(48, 12, (7, 3))):
        assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert isinstance(network_of(config), Student if isinstance(config, StudentConfig) else DMFNet)
    assert ModelConfig.from_dict({"channels": 32, "norm_groups": 8}) == preset("tiny"), "old files lack these fields"


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="base, small, tiny"):
        preset("huge")
