"""The Muon optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from train.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16)])
def test_singular_values_become_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_sizes_of_updates() -> None:
    """The RMS update of a matrix is 0.2 times the learning rate, as with AdamW; that of a bias is the learning rate."""
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 3)
    before = copy.deepcopy(layer)
    optimizer = Muon(layer.parameters(), lr=0.01, weight_decay=0.0)
    layer(torch.randn(4, 32, 8, 8)).square().mean().backward()
    optimizer.step()
    change = (layer.weight - before.weight).detach().square().mean().sqrt().item()
    assert change == pytest.approx(0.002, rel=0.15)
    assert layer.bias is not None
    assert before.bias is not None
    torch.testing.assert_close((layer.bias - before.bias).detach().abs(), torch.full((64,), 0.01), rtol=0.01, atol=0)


def test_other_parameters_use_adamw() -> None:
    """Vectors, and weights with a single output."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(4, 1, 3), nn.PReLU())
    theirs = copy.deepcopy(ours)
    image = torch.randn(2, 4, 8, 8)
    optimizers = (
        Muon(ours.parameters(), lr=0.01, weight_decay=0.1),
        torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1),
    )
    for _ in range(5):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (model(image) - 1).square().mean().backward()
            optimizer.step()
    for first, second in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_resumes_from_its_state() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 8, 3)
    image = torch.randn(2, 4, 8, 8)

    def step(layer: nn.Conv2d, optimizer: Muon) -> None:
        optimizer.zero_grad()
        layer(image).square().mean().backward()
        optimizer.step()

    optimizer = Muon(model.parameters(), lr=0.01, weight_decay=0.01)
    step(model, optimizer)
    other = copy.deepcopy(model)
    resumed = Muon(other.parameters(), lr=0.01, weight_decay=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    step(other, resumed)
    for first, second in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)
