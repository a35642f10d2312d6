from __future__ import annotations

import numpy as np
import pytest
import torch

from dmfnet_fast import DMFNetError
from tests.synthetic_weights import GOLDEN
from train.losses import (
    LOSSES,
    hybrid_loss,
    invented_specks,
    loss_identity,
    loss_name,
    loss_named,
    sobel_magnitude,
    sources_of,
    specks,
    structure_similarity,
)
from train.recipe import DEFAULT_LOSS, LOSS_NAMES


@pytest.mark.parametrize(("file", "expected"), [("golden_64", 2.45285), ("golden_64x96", 2.53471)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden(file: str, expected: float, dtype: torch.dtype) -> None:
    with np.load(GOLDEN / f"{file}.npz") as golden:
        images = [torch.from_numpy(golden[name])[None, None].to(dtype) for name in ("fused", "a", "b")]
    assert abs(float(hybrid_loss(*images)) - expected) < 1e-5


def test_sobel() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    magnitude = sobel_magnitude(ramp)
    assert torch.equal(magnitude[0, 0, 1:-1, 1:-1], torch.full((6, 6), 8.0))
    assert torch.equal(sobel_magnitude(ramp.mT)[0, 0], magnitude[0, 0].T)


def test_similarity_follows_the_source_that_varies_more() -> None:
    torch.manual_seed(0)
    lively, flat = torch.rand(1, 1, 48, 48) * 2 - 1, torch.zeros(1, 1, 48, 48)
    assert structure_similarity(lively, sources_of(lively, flat)) > 0.9999
    assert structure_similarity(lively, sources_of(flat, lively)) > 0.9999
    assert structure_similarity(flat, sources_of(flat, lively)) < 0.1


def test_ties_choose_a() -> None:
    torch.manual_seed(0)
    a = torch.rand(1, 1, 48, 48) * 2 - 1
    assert structure_similarity(a, sources_of(a, -a)) > 0.9999
    assert structure_similarity(-a, sources_of(a, -a)) < -0.99


def test_flat_images_give_finite_gradients() -> None:
    """Variances of flat areas round to slightly negative numbers; their square roots were NaN once."""
    fused = torch.full((1, 1, 32, 32), 0.7, requires_grad=True)
    a = torch.full((1, 1, 32, 32), 0.3)
    loss = hybrid_loss(fused, a, a + 1e-4)
    loss.backward()
    assert torch.isfinite(loss)
    assert fused.grad is not None
    assert torch.isfinite(fused.grad).all()


def test_batch_is_the_mean() -> None:
    torch.manual_seed(0)
    fused, a, b = torch.rand(3, 2, 1, 32, 32) * 2 - 1
    single = [hybrid_loss(fused[n : n + 1], a[n : n + 1], b[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(hybrid_loss(fused, a, b), torch.stack(single).mean())


def test_specks() -> None:
    """A dot is its height, a line nothing, in any direction; a tooth of a serrated edge is half of its height."""
    dot, line, edge = torch.zeros(3, 1, 1, 16, 16)
    dot[..., 8, 8] = 0.6
    peaks, pits = specks(dot)[0]
    assert peaks[8, 8] == pytest.approx(0.6)
    assert pits.max() == 0
    assert torch.equal(specks(-dot)[0, 1], peaks)
    for straight in (line.index_fill(2, torch.tensor(8), 0.6), torch.eye(16)[None, None]):
        assert specks(straight)[..., 1:-1, 1:-1].max() == 0
        assert specks(-straight)[..., 1:-1, 1:-1].max() == 0
    edge[..., 8:, :] = 0.6
    assert specks(edge).max() == 0
    edge[..., 7, ::2] = 0.6
    assert specks(edge)[0, 0, 7, 2:-2:2].tolist() == pytest.approx([0.3] * 6)


def test_specks_of_a_source_are_not_invented() -> None:
    torch.manual_seed(0)
    a, flat = torch.rand(1, 1, 24, 24) * 2 - 1, torch.zeros(1, 1, 24, 24)
    assert invented_specks(a, a, flat) == 0
    assert invented_specks(a, flat, a) == 0
    dotted = flat.clone()
    dotted[..., 12, ::2] = -0.5
    dotted.requires_grad_()
    loss = invented_specks(dotted, flat, flat)
    assert loss.item() == pytest.approx(0.5 * 12 / 24**2, rel=0.1)
    loss.backward()
    assert dotted.grad is not None
    assert (dotted.grad[0, 0, 12, 2:-2:2] < 0).all(), "descent fills the dots up"


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_teaches(name: str) -> None:
    """A scalar, the mean over the batch, of which descent makes less."""
    torch.manual_seed(0)
    a, b, fused = torch.rand(3, 2, 1, 32, 32) * 2 - 1
    fused.requires_grad_()
    of = loss_named(name).of
    loss = of(fused, a, b)
    assert loss.shape == ()
    single = [of(fused[n : n + 1], a[n : n + 1], b[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(loss, torch.stack(single).mean())
    (gradient,) = torch.autograd.grad(loss, fused)
    assert of(fused - 0.1 * gradient / gradient.norm(), a, b) < loss


def test_named_losses() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 1, 1, 32, 32) * 2 - 1
    plain = hybrid_loss(*images)
    assert torch.equal(loss_named("hybrid-plain").of(*images), plain)
    assert torch.equal(loss_named("hybrid").of(*images), plain + 16 * invented_specks(*images))
    assert tuple(LOSSES) == LOSS_NAMES
    assert DEFAULT_LOSS in LOSSES
    with pytest.raises(DMFNetError, match="unknown loss 'l1'; use one of hybrid, hybrid-plain"):
        loss_named("l1")


@pytest.mark.parametrize("name", LOSSES)
def test_an_identity_tells_its_loss(name: str) -> None:
    assert loss_name({"loss": loss_identity(name)}) == name
