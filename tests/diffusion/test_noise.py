"""The noise is pinned: if it changes, so does every fused image."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from dmfnet_fast.diffusion.noise import fusion_noise, inverse_normal_cdf

PINNED_FIRST = ["-0x1.22cd1a0000000p+1", "-0x1.6714740000000p-1", "-0x1.380f160000000p+0", "0x1.4c209a0000000p-3"]
PINNED_LAST = ["0x1.7866e60000000p-2", "-0x1.d50d920000000p-1"]
PINNED_OTHER_SEED = "-0x1.09807a0000000p-3"
PINNED_256 = "e56031274dd7bbfdd7947baaa571d6c4dcc1e2a85be06bcd0ac384256e92e4cf"


def test_pinned_values() -> None:
    noise = fusion_noise(0, 64, 96)
    assert noise.shape == (3, 2, 64, 96)
    assert noise.dtype == np.float32
    assert [value.hex() for value in noise[0, 0, 0, :4].tolist()] == PINNED_FIRST
    assert [value.hex() for value in noise[2, 1, -1, -2:].tolist()] == PINNED_LAST
    assert fusion_noise(2**64 - 1, 64, 64)[1, 0, 5, 7].item().hex() == PINNED_OTHER_SEED


def test_noise_of_fewer_timesteps_is_a_prefix() -> None:
    assert np.array_equal(fusion_noise(3, 64, 80, 1), fusion_noise(3, 64, 80)[:1])


def test_every_bit_is_pinned() -> None:
    import hashlib

    digest = hashlib.sha256(fusion_noise(0, 256, 256).astype("<f4").tobytes()).hexdigest()
    assert digest == PINNED_256


def test_quantiles_against_the_standard_library() -> None:
    p = np.concatenate([np.linspace(0.001, 0.999, 999), 10.0 ** -np.arange(3, 17), [0.075, 0.925, 0.5]])
    expected = [NormalDist().inv_cdf(value) for value in p]
    np.testing.assert_allclose(inverse_normal_cdf(p), expected, rtol=1e-14, atol=1e-15)


def test_noise_is_standard_normal() -> None:
    noise = fusion_noise(1, 256, 256).astype(np.float64)
    count = noise.size
    assert abs(noise.mean()) < 4 / np.sqrt(count)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * count)
    assert abs((noise**4).mean() - 3) < 4 * np.sqrt(96 / count)
    assert abs(np.corrcoef(noise[0, 0].ravel(), noise[0, 1].ravel())[0, 1]) < 4 / 256


def test_seeds_differ() -> None:
    assert not np.array_equal(fusion_noise(0, 64, 64), fusion_noise(1, 64, 64))


def test_cached_and_read_only() -> None:
    noise = fusion_noise(0, 64, 64)
    assert fusion_noise(0, 64, 64) is noise
    with pytest.raises(ValueError, match="read-only"):
        noise[0] = 0


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        fusion_noise(seed, 64, 64)
