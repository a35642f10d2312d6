"""A small head, written once, and copies of it to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dmfnet_fast.volumes.phantom import HeadVolumes, make_head, write_enhanced, write_head, write_nifti

SIZE = 48


@pytest.fixture(scope="session")
def head() -> HeadVolumes:
    return make_head(seed=1, size=SIZE)


@pytest.fixture(scope="session")
def written(head: HeadVolumes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders MR, CT, PT, NM and EMR (Enhanced MR) and MR.nii.gz, not to be changed."""
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    folder = tmp_path_factory.mktemp("head")
    write_head(head, folder)
    write_enhanced(head.mr, folder / "EMR" / "enhanced.dcm")
    write_nifti(head.mr, folder / "MR.nii.gz")
    write_nifti(head.pet, folder / "PT.nii")
    return folder


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the folders."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(written / name, tmp_path / name))

    return copy
