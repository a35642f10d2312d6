"""Widened networks, compared with the narrower ones that they start from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dmfnet_fast.engines import shipped
from dmfnet_fast.model import DMFNet, ModelConfig, load_model, preset
from tests.synthetic_weights import random_inputs
from train.widen import widen


@pytest.fixture(scope="module")
def narrow() -> DMFNet:
    model = load_model(shipped()["turbo"])
    assert isinstance(model, DMFNet)
    return model


@pytest.mark.parametrize("times", [2, 3])
def test_gives_nearly_the_same_image(narrow: DMFNet, times: int) -> None:
    config = replace(narrow.config, channels=32 * times, norm_groups=8 * times)
    wide = widen(narrow, config)
    given = {name: torch.tensor(array) for name, array in random_inputs(config).items()}
    with torch.no_grad():
        before, after = narrow(**given), wide(**given)
        (coarse, *_), _ = narrow.features(given["a"], given["b"])
        (wide_coarse, *finer), _ = wide.features(given["a"], given["b"])
    assert (before - after).abs().mean() < 0.5 / 127.5, "half a gray level"
    assert (before - after).abs().max() > 0, "groups that span a boundary"
    # No such groups precede the coarsest feature, for which the function is the same.
    copies = wide_coarse.unflatten(1, (len(config.timesteps), times, -1))
    for n in range(times):
        torch.testing.assert_close(copies[:, :, n].flatten(1, 2), coarse, rtol=1e-4, atol=1e-4)
    assert len(finer) == 4


def test_copies_can_diverge(narrow: DMFNet) -> None:
    """Copies of a channel have unequal weights; otherwise their gradients would stay equal."""
    wide = widen(narrow, replace(narrow.config, channels=64, norm_groups=16))
    weight = wide.fusion.state_dict()["decoder.9.block.2.weight"]
    first, second = weight.chunk(2, dim=1)
    assert ((first - second).abs() > 0.05 * weight.abs().mean()).float().mean() > 0.5
    original = narrow.fusion.state_dict()["decoder.9.block.2.weight"]
    torch.testing.assert_close((first + second)[: len(original)], original)


@pytest.mark.parametrize("config", [ModelConfig(48, 12), ModelConfig(64, 8), preset("tiny"), ModelConfig(64, 16)])
def test_only_multiples(narrow: DMFNet, config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="is not a multiple of"):
        widen(narrow, config)
