"""Training pairs and crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dmfnet_fast.commands.phantom import write_phantoms
from dmfnet_fast.images.io import write_image
from train.data import GAIN, INVERTED, VARIED, CropSampler, Pair, held_out, load_pairs, split, varied
from train.stage1 import main as stage1
from train.task import Draw


def test_bad_data_is_listed(tmp_path: Path) -> None:
    list(write_phantoms(tmp_path, train=3, test=0, size=64))
    root = tmp_path / "train"
    (root / "CT-MRI" / "CT" / "001.png").unlink()
    (root / "PET-MRI" / "PET" / "002.png").write_bytes(b"broken")
    write_image(root / "SPECT-MRI" / "SPECT" / "003.png", np.zeros((64, 80), np.uint8))
    for kind in ("MRI", "CT"):
        write_image(root / "CT-MRI" / kind / "004.png", np.zeros((32, 32), np.uint8))
    write_image(root / "PET-MRI" / "PET" / "001.png", np.zeros((64, 64), np.uint16))
    (root / "pet_mri").mkdir()
    result = CliRunner().invoke(stage1, ["--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "6 files or folders cannot be used" in result.stderr
    for message in (
        "CT-MRI/MRI/001.png: has no partner",
        "002.png: is not an image",
        "SPECT/003.png: is 80x64",
        "004.png: is 32x32, smaller",
        "PET/001.png: has more than 8 bits",
        "pet_mri: is not one of",
    ):
        assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_no_data(tmp_path: Path) -> None:
    result = CliRunner().invoke(stage1, ["--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "no pairs found" in result.stderr


@pytest.mark.parametrize("count", [1, 2, 9, 10, 88, 130, 274])
def test_held_out(count: int) -> None:
    """About a tenth, in at most two runs of neighbors, with at least one pair left for training."""
    held = held_out(count)
    assert len(set(held)) == len(held) < count
    assert set(held) <= set(range(count))
    runs = 1 + int(np.sum(np.diff(held) > 1)) if held else 0
    assert runs <= 2
    assert bool(held) == (count > 1)
    if count >= 10:
        assert abs(len(held) - count / 10) <= 1


def test_only_train_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        for kind in ("MRI", "CT"):
            (tmp_path / "train" / "CT-MRI" / kind).mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / "train" / "CT-MRI" / kind / f"{number}.png", np.full((64, 64), number, np.uint8))
    (tmp_path / "test" / "CT-MRI" / "MRI").mkdir(parents=True)
    (tmp_path / "test" / "CT-MRI" / "MRI" / "1.png").write_bytes(b"not an image")
    assert [pair.name for pair in load_pairs(tmp_path, 64)] == ["1.png", "2.png", "10.png"]


def test_split_is_by_modality_and_complete() -> None:
    planes = np.zeros((5, 64, 64), np.uint8)
    pairs = [Pair(m, Path(f"{n:03}.png"), planes) for m in ("CT", "SPECT") for n in range(20)]
    training, validation = split(pairs)
    assert [(pair.modality, pair.name) for pair in validation] == [
        (m, n) for m in ("CT", "SPECT") for n in ("005.png", "015.png")
    ]
    assert sorted(map(id, training + validation)) == sorted(map(id, pairs))


def test_crops() -> None:
    a = np.arange(80 * 96).reshape(80, 96) % 251
    pair = Pair("CT", Path("x"), np.stack([a, 250 - a, a, a, a]).astype(np.uint8))

    def crops(share: slice) -> torch.Tensor:
        return CropSampler([pair], 64).pairs(8, Draw(np.random.default_rng(0), torch.Generator(), share))

    whole = crops(slice(None))
    assert whole.shape == (2, 8, 1, 64, 64)
    torch.testing.assert_close(whole[0] + whole[1], torch.full_like(whole[0], 250 / 127.5 - 2), atol=1e-5, rtol=0)
    assert len({crop.numpy().tobytes() for crop in whole[0]}) == 8
    shares = torch.cat([crops(slice(0, 5)), crops(slice(5, 8))], dim=1)
    assert torch.equal(shares, whole), "the shares of all processes make one batch"


def test_varied_crops() -> None:
    """b keeps its color proportions, black stays black unless a is inverted, and other pairs are unchanged."""
    batch = 400
    ramp = torch.linspace(0, 255, 64).round().expand(64, 64)
    planes = torch.stack([ramp, ramp, ramp, ramp / 2, ramp / 4])[:, None, None].repeat(1, batch, 1, 1, 1)

    def drawn(share: slice) -> torch.Tensor:
        return varied(planes[:, share], batch, Draw(np.random.default_rng(0), torch.Generator(), share))

    result = drawn(slice(None))
    assert torch.equal(torch.cat([drawn(slice(0, 150)), drawn(slice(150, batch))], dim=1), result)
    changed = (result != planes).flatten(2).any(2).any(0)
    assert changed.float().mean().item() == pytest.approx(VARIED, abs=0.08)
    assert torch.equal(result[:, ~changed], planes[:, ~changed])
    result = result[:, changed]
    assert torch.equal(result, result.round())
    assert result.amin() == 0
    assert result.amax() <= 255
    inverted = result[0, :, 0, 0, 0] > result[0, :, 0, 0, -1]
    assert inverted.float().mean().item() == pytest.approx(INVERTED, abs=0.06)
    gains = result[1, :, 0, 0, -1] / 255
    assert gains.amin() >= GAIN[0] - 0.01
    assert gains.amin() < GAIN[0] + 0.05
    assert (result[2] - 2 * result[3]).abs().amax() <= 1.5
    assert (result[2] - 4 * result[4]).abs().amax() <= 2.5
