"""The student: its output, its receptive field, and its weights file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dmfnet_fast.errors import EngineError
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.model import Student, StudentConfig, load_model, optimize, preset, save_model
from dmfnet_fast.model.weights import load_denoiser
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.precision import FloatPrecision

CONFIG = StudentConfig(channels=16, blocks=2)


def student(config: StudentConfig = CONFIG, scale: float = 1.0) -> Student:
    torch.manual_seed(0)
    model = Student(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def inputs(height: int = 64, width: int = 96) -> dict[str, torch.Tensor]:
    head = make_phantom(0, max(height, width))
    canvas = Canvas(head.mri[:height, :width], head.pet[:height, :width])
    return {name: torch.tensor(np.atleast_3d(getattr(canvas, name).T).T)[None] for name in ("a", "b", "interval")}


def test_zero_change_gives_the_brighter_source() -> None:
    model = student()
    torch.nn.init.zeros_(model.last.weight)
    assert model.last.bias is not None
    torch.nn.init.zeros_(model.last.bias)
    given = inputs()
    low, high = given["interval"].split(1, dim=1)
    expected = torch.maximum(given["a"], given["b"]).maximum(low).minimum(high)
    assert torch.equal(model(**given), expected)


def test_result_lies_in_the_interval() -> None:
    model, given = student(scale=3.0), inputs()
    low, high = given["interval"].split(1, dim=1)
    with torch.no_grad():
        bounded, free = model(**given), model(**given, bounded=False)
    assert ((free < low) | (free > high)).any()
    assert torch.equal(bounded, free.maximum(low).minimum(high))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_reach(factor: int) -> None:
    """An input pixel does not affect outputs farther away than `reach`."""
    model = student(StudentConfig(8, 1, factor))
    given = {name: torch.zeros(1, channels, 64, 64) for name, channels in (("a", 1), ("b", 1), ("interval", 2))}
    given["interval"][:, 1] = 1
    changed = {**given, "a": given["a"].clone()}
    changed["a"][..., 32, 32] = 1
    with torch.no_grad():
        rows, columns = (model(**given, bounded=False) != model(**changed, bounded=False))[0, 0].nonzero().T
    assert max((rows - 32).abs().max(), (columns - 32).abs().max()) <= model.config.reach


def test_tiles_equal_the_image() -> None:
    """Nothing depends on the image as a whole: tiles with margins of `reach` give the same pixels."""
    model, given = student(preset_of("nano")), inputs(128, 128)
    margin = -(-model.config.reach // model.config.factor) * model.config.factor
    with torch.no_grad():
        whole = model(**given)
        for top in (0, 64):
            first, last = max(0, top - margin), min(128, top + 64 + margin)
            tile = model(**{name: image[..., first:last, :] for name, image in given.items()})
            part = tile[..., top - first : top - first + 64, :]
            torch.testing.assert_close(part, whole[..., top : top + 64, :], rtol=0, atol=1e-5)


def preset_of(name: str) -> StudentConfig:
    config = preset(name)
    assert isinstance(config, StudentConfig)
    return config


def test_brightness_is_stable_across_slices() -> None:
    """A bright spot in one corner, as in a neighboring slice, leaves the opposite corner unchanged, bit for bit."""
    model, given = student(), inputs(128, 128)
    given["interval"] = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 128, 128)
    brighter = {**given, "a": given["a"].clone(), "b": given["b"].clone()}
    brighter["a"][..., :16, :16] = 1
    brighter["b"][..., :16, :16] = 1
    with torch.no_grad():
        before, after = model(**given), model(**brighter)
    assert not torch.equal(before, after)
    assert torch.equal(before[..., 64:, 64:], after[..., 64:, 64:])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.0), ("bfloat16", 0.02), ("float16", 0.003)])
def test_precision(precision: FloatPrecision, tolerance: float) -> None:
    model, given = student(), inputs()
    net = optimize(model, precision)
    with torch.no_grad():
        result, expected = net(**given), model(**given)
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() <= tolerance
    assert next(model.parameters()).dtype == torch.float32, "the original is not changed"


def test_weights_file(tmp_path: Path) -> None:
    model = student()
    model.record = {"stage2": {"steps": 1}}
    save_model(model, tmp_path / "s.safetensors")
    copy = load_model(tmp_path / "s.safetensors")
    assert isinstance(copy, Student)
    assert copy.config == CONFIG
    assert copy.record == model.record
    assert all(torch.equal(x, y) for x, y in zip(model.state_dict().values(), copy.state_dict().values(), strict=True))
    with pytest.raises(EngineError, match="holds a student, but a denoiser or dmfnet is needed"):
        load_denoiser(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 12, "blocks": 1}, "multiple of 8"),
        ({"channels": 8, "blocks": 0}, "at least 1"),
        ({"channels": 8, "blocks": 1, "factor": 3}, "1, 2, 4 or 8"),
    ],
)
def test_invalid_configurations(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudentConfig(**settings)
