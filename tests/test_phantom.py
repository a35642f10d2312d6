"""Head phantoms and the command that writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dmfnet_fast.commands.demo import main as demo
from dmfnet_fast.commands.phantom import main
from dmfnet_fast.images.io import read_image
from dmfnet_fast.phantom import MODALITIES, make_phantom
from dmfnet_fast.volumes import read_volume
from train.data import load_pairs


def test_appearances() -> None:
    phantom = make_phantom(0, 128)
    assert phantom.mri.shape == phantom.ct.shape == (128, 128)
    assert phantom.pet.shape == phantom.spect.shape == (128, 128, 3)
    for image in (phantom.mri, phantom.ct, phantom.pet, phantom.spect):
        assert image.dtype == np.uint8
        assert image.max() > 200
        assert not image[:4].any(), "air is black"
    bone = phantom.ct > 230
    assert 0.01 < bone.mean() < 0.3
    assert phantom.mri[bone].mean() < 60, "bone is bright in CT and dark in MRI"
    inside = phantom.mri > 40
    for image in (phantom.pet, phantom.spect):
        assert image[inside].mean() > 5 * image[~inside].mean(), "the tracer is where the brain is"


def test_seeded() -> None:
    assert np.array_equal(make_phantom(5, 64).mri, make_phantom(5, 64).mri)
    assert not np.array_equal(make_phantom(5, 64).mri, make_phantom(6, 64).mri)


def test_too_small() -> None:
    with pytest.raises(ValueError, match="at least 64"):
        make_phantom(0, 32)


def test_command_writes_training_layout(cli: CliRunner, tmp_path: Path) -> None:
    result = cli.invoke(main, [str(tmp_path / "data"), "--train", "2", "--test", "1", "--size", "64"])
    assert result.exit_code == 0, result.output
    pairs = load_pairs(tmp_path / "data", 64)
    assert [(pair.modality, pair.name) for pair in pairs] == [(m, f"00{n}.png") for m in MODALITIES for n in (1, 2)]
    for modality in MODALITIES:
        folder = tmp_path / "data" / "test" / f"{modality}-MRI"
        assert [path.name for kind in ("MRI", modality) for path in (folder / kind).iterdir()] == ["001.png"] * 2
    heads = {read_image(path).tobytes() for path in (tmp_path / "data").glob("*/*/MRI/*.png")}
    assert len(heads) == 9


def test_command_overwrites_nothing(cli: CliRunner, tmp_path: Path) -> None:
    precious = tmp_path / "train" / "CT-MRI" / "MRI" / "001.png"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"precious")
    result = cli.invoke(main, [str(tmp_path)])
    assert result.exit_code == 2
    assert "already holds files" in result.stderr
    assert precious.read_bytes() == b"precious"


def test_command_cannot_write(cli: CliRunner, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    result = cli.invoke(main, [str(tmp_path / "file" / "data")])
    assert result.exit_code == 2
    assert "error:" in result.stderr


def test_command_writes_volumes(cli: CliRunner, tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    folder = tmp_path / "head"
    result = cli.invoke(main, [str(folder), "--volumes", "--size", "64", "--seed", "3"])
    assert result.exit_code == 0, result.output
    paths = [Path(line) for line in result.stdout.splitlines()]
    assert [path.name for path in paths] == ["MR", "CT", "PT", "NM", "MR.nii.gz", "CT.nii.gz", "PT.nii.gz", "NM.nii.gz"]
    for path, modality in zip(paths[:4], ("MR", "CT", "PT", "NM"), strict=True):
        volume = read_volume(path)
        assert volume.modality == modality
        assert volume.shape == read_volume(folder / f"{modality}.nii.gz").shape
    again = cli.invoke(main, [str(folder), "--volumes"])
    assert again.exit_code == 2
    assert "already holds files" in again.stderr
    assert "leave --train and --test out" in cli.invoke(main, [str(folder), "--volumes", "--train", "2"]).stderr
    assert "at most 1024 pixels wide" in cli.invoke(main, [str(folder), "--volumes", "--size", "2000"]).stderr


def test_demo(cli: CliRunner, tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    result = cli.invoke(demo, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert len(list((tmp_path / "fused-volume" / "fused").glob("*.dcm"))) == 26
    assert str(tmp_path / "fused-volume" / "report.html") in result.stdout
