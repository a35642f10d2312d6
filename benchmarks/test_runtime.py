"""What a fusion costs on this machine, beside what it could cost. Run: `pytest --benchmark-only`.

Compare within one run only. The floor of a fusion is its arithmetic over the rate that `test_matmul` measures:
1705 GFLOP for base at 256x256 without the unused tail, and 1/16 of that for tiny.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dmfnet_fast import Fuser
from dmfnet_fast.colour import to_network
from dmfnet_fast.engines import SHIPPED_WEIGHTS
from dmfnet_fast.model import DMFNet, load_model
from dmfnet_fast.model.denoiser import TAPS, UP_BLOCKS
from dmfnet_fast.noise import fusion_noise
from dmfnet_fast.phantom import Phantom, make_phantom
from dmfnet_fast.schedule import fusion_levels

SIZE = 256
MATRIX = 2048


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(0, SIZE)


@pytest.fixture(scope="module")
def fuser() -> Iterator[Fuser]:
    with Fuser() as fuser:
        yield fuser


@pytest.fixture(scope="module")
def inputs(phantom: Phantom) -> list[np.ndarray]:
    """What `fuse` gives to the network."""
    a, b = (to_network(picture, (0, 255))[None, None] for picture in (phantom.mri, phantom.pet))
    return [a, b, fusion_noise(0, SIZE, SIZE)]


def published_way(model: DMFNet, a: torch.Tensor, b: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """As the published script computes: one image at a time, every pass of the denoiser to its end."""
    by_image = []
    for index, image in enumerate((a, b)):
        by_timestep = []
        for (level, sigma), n in zip(fusion_levels(), noise, strict=True):
            outputs = list(model.denoiser.up_path(level * image + sigma * n[index], torch.full((1, 1), level)))
            model.denoiser.final_conv(outputs[-1])
            features = [outputs[UP_BLOCKS - 1 - tap] for tap in reversed(TAPS)]
            by_timestep.append(features)
        by_image.append([torch.cat(features, dim=1) for features in zip(*by_timestep, strict=True)])
    return model.fusion(*by_image)


@pytest.mark.benchmark(group="rate")
def test_matmul(benchmark: Callable[..., Any]) -> None:
    """2 * 2048^3 = 17.2 GFLOP in float32: the rate that the convolutions are measured against."""
    x = torch.rand(MATRIX, MATRIX)
    benchmark(torch.mm, x, x)


@pytest.mark.benchmark(group="tiny 256x256, CPU", min_rounds=15, warmup=True, warmup_iterations=1)
def test_published_way(benchmark: Callable[..., Any], inputs: list[np.ndarray], fuser: Fuser) -> None:
    model = load_model(SHIPPED_WEIGHTS)
    tensors = [torch.from_numpy(x.copy()) for x in inputs]
    with torch.inference_mode():
        np.testing.assert_allclose(published_way(model, *tensors), fuser.run(*inputs), rtol=0, atol=1e-4)
        benchmark(published_way, model, *tensors)


@pytest.mark.benchmark(group="tiny 256x256, CPU", min_rounds=15, warmup=True, warmup_iterations=1)
def test_run(benchmark: Callable[..., Any], inputs: list[np.ndarray], fuser: Fuser) -> None:
    """The bare network through its engine."""
    benchmark(fuser.run, *inputs)


@pytest.mark.benchmark(group="tiny 256x256, CPU", min_rounds=15, warmup=True, warmup_iterations=1)
def test_fuse(benchmark: Callable[..., Any], phantom: Phantom, fuser: Fuser) -> None:
    """The whole call: arrays in, colour picture out."""
    benchmark(fuser.fuse, phantom.mri, phantom.pet)


@pytest.mark.parametrize("what", ["numpy, PIL.Image", "dmfnet_fast"])
@pytest.mark.benchmark(group="import", min_rounds=10)
def test_import(benchmark: Callable[..., Any], what: str) -> None:
    """A fresh interpreter that imports; `dmfnet_fast` should cost less than twice `numpy, PIL.Image`."""
    benchmark(subprocess.run, [sys.executable, "-c", f"import {what}"], check=True)
