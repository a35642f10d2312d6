"""8-bit images to 8-bit images: the tensors' way equal to the arrays' way, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.diffusion.noise import fusion_noise
from dmfnet_fast.engines import shipped
from dmfnet_fast.engines.pixels import PixelsToPixels
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.model import load_model, optimize, preset, save_model
from dmfnet_fast.phantom import make_phantom
from tests.synthetic_weights import model_by_rule

HEIGHT, WIDTH = 64, 80
SEED = 5
RULES = (Rules(), Rules(0, False), Rules(1, False), Rules(0.6, True), Rules(0, True))


def images() -> dict[str, NDArray[np.uint8]]:
    """Of a head, and of everything that 8 bits can hold: noise, saturated colors, black and white."""
    head = make_phantom(0, 96)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return {
        "mri": head.mri[16:80, 8:88],
        "ct": head.ct[16:80, 8:88],
        "pet": head.pet[16:80, 8:88],
        "gray noise": noise[..., 0],
        "color noise": noise,
        "saturated": rng.choice(np.array([0, 255], np.uint8), (HEIGHT, WIDTH, 3)),
        "white": np.full((HEIGHT, WIDTH), 255, np.uint8),
    }


PAIRS = (
    *(("mri", "ct"), ("mri", "pet"), ("mri", "saturated"), ("white", "color noise"), ("gray noise", "saturated")),
    *(("color noise", "gray noise"), ("pet", "saturated"), ("gray noise", "white")),
)


@pytest.fixture(scope="module", params=["nano", "turbo", "tiny"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A student, a network without noise, and one with it; its weights, and it as the engine has it on a CPU."""
    path = shipped().get(request.param)
    if path is None:
        path = tmp_path_factory.mktemp("pixels") / "tiny.safetensors"
        save_model(model_by_rule(preset(request.param)), path)
    return path, optimize(load_model(path), "float32")


@pytest.mark.filterwarnings("ignore:.* are they swapped")
@pytest.mark.parametrize("rules", RULES, ids=str)
def test_equal_to_a_canvas(network: tuple[Path, torch.nn.Module], rules: Rules) -> None:
    path, net = network
    given = images()
    with Fuser(
        path, SEED, precision="float32", keep_chroma=rules.kept_chroma, allow_invention=rules.invention
    ) as fuser:
        interface = fuser._engine.interface
        noise = None
        if interface.timesteps:
            noise = torch.tensor(fusion_noise(SEED, HEIGHT, WIDTH, interface.timesteps))
        on_tensors = PixelsToPixels(net, interface, rules, noise)
        for name_a, name_b in PAIRS:
            a, b = given[name_a], given[name_b]
            wanted = fuser.fuse(a, b)
            with torch.inference_mode():
                got = on_tensors(torch.tensor(a)[None], torch.tensor(b)[None])
            assert got.dtype == torch.uint8
            assert np.array_equal(got[0].numpy(), wanted), (name_a, name_b)


def average(a: Any, b: Any, interval: Any) -> Any:
    """In place of a network: what it makes of a pair depends on no other."""
    return torch.minimum(torch.maximum(0.7 * a + 0.4 * b, interval[:, :1]), interval[:, 1:])


def test_a_batch() -> None:
    rules, interface, given = Rules(), Interface(timesteps=0, interval=True), images()
    a = [given[name] for name in ("mri", "white", "gray noise")]
    b = [given[name] for name in ("pet", "color noise", "saturated")]
    got = PixelsToPixels(average, interface, rules)(torch.tensor(np.stack(a)), torch.tensor(np.stack(b)))
    for one, other, fused in zip(a, b, got.numpy(), strict=True):
        canvas = Canvas(one, other, rules=rules)
        tensors = {"a": canvas.a[None], "b": canvas.b[None], "interval": canvas.interval}
        luminance = average(**{name: torch.tensor(array)[None] for name, array in tensors.items()})
        assert np.array_equal(fused, canvas.finish(luminance[0, 0].numpy()))


def test_every_gray_level() -> None:
    """All 256, and the luminance of colors, as the arrays' way has them."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    seen: dict[str, Any] = {}

    def network(**inputs: Any) -> Any:
        seen.update(inputs)
        return inputs["a"]

    around = PixelsToPixels(network, Interface(timesteps=0, interval=True), Rules(0, True))
    fused = around(torch.tensor(levels)[None], torch.tensor(levels.T.copy())[None])
    assert np.array_equal(fused[0].numpy(), levels)
    canvas = Canvas(levels, levels.T, rules=Rules(0, True))
    assert np.array_equal(seen["a"][0, 0].numpy(), canvas.a)
    assert np.array_equal(seen["b"][0, 0].numpy(), canvas.b)
    assert np.array_equal(seen["interval"][0].numpy(), canvas.interval)
