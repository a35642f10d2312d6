"""Shared fixtures: synthetic checkpoints, small models on disk, and phantom pairs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dmfnet_fast import Fuser
from dmfnet_fast.commands.convert import main as convert
from dmfnet_fast.config import DMFNET_PRESETS
from dmfnet_fast.images.io import write_image
from dmfnet_fast.model import DMFNet, save_model
from dmfnet_fast.phantom import Phantom, make_phantom
from tests.synthetic_weights import GOLDEN, rule_tensor

# Files that take longest, which begin first: at the end, no process waits long for another.
LONGEST = (
    "kernels/test_interpreted.py",
    "export/tensorrt/test_builds.py",
    "export/test_export.py",
    "export/test_int8.py",
    "test_documents.py",
    "export/tensorrt/test_engine_file.py",
    "test_wheel.py",
    "kernels/test_report.py",
    "export/tensorrt/test_plugins.py",
    "export/onnx/test_pixels.py",
    "benchmarks/gpu/test_run.py",
    "train/test_training.py",
    "node/test_kills.py",
)


def pytest_xdist_auto_num_workers() -> int:
    """One more than cores, as the tests of the node and of pages wait for half their time; of more than 4, each would
    have too few files."""
    return min((os.cpu_count() or 1) + 1, 4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def published_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two .pth files with the published names and shapes and synthetic values."""
    shapes = json.loads((GOLDEN / "checkpoint_shapes.json").read_text())
    folder = tmp_path_factory.mktemp("published")
    paths = folder / "I630000_E14000_gen.pth", folder / "MIF.pth"
    for path, key in zip(paths, ("unet_checkpoint", "fusion_checkpoint"), strict=True):
        torch.save({name: rule_tensor(name, shape) for name, shape in shapes[key].items()}, path)
    return paths


@pytest.fixture(scope="session")
def converted(published_checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic weights of the base preset, converted by dmfnet-convert."""
    denoiser, fusion = published_checkpoints
    path = tmp_path_factory.mktemp("converted") / "dmfnet-base.safetensors"
    convert(["--denoiser", str(denoiser), "--fusion", str(fusion), "-o", str(path)], standalone_mode=False)
    return path


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled models out of the user's cache, and do not read from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMFNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny network, for tests that do not depend on the quality of the image."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(DMFNet(DMFNET_PRESETS["tiny"]), path)
    return path


@pytest.fixture(scope="session")
def fuser(tiny_weights: Path) -> Fuser:
    return Fuser(tiny_weights, precision="float32")


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    return make_phantom(seed=3, size=64)


@pytest.fixture
def pair(tmp_path: Path, phantom: Phantom) -> tuple[Path, Path]:
    """An MRI and a PET file of 64x64."""
    a, b = tmp_path / "mri.png", tmp_path / "pet.png"
    write_image(a, phantom.mri)
    write_image(b, phantom.pet)
    return a, b


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner()
