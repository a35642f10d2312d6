from __future__ import annotations

import numpy as np
import pytest
import torch

from train.losses import hybrid_loss, sobel_magnitude, sources_of, structure_similarity

from ..rules import GOLDEN


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
