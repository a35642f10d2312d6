"""A fuzzer of `dmfnet-fuse`: whatever it is given, one clear message and nothing half-written, or the right image."""

from __future__ import annotations

import gzip
import random
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("gdcm", reason="needs the extra dicom")
pytest.importorskip("nibabel", reason="needs the extra dicom")

from dmfnet_fast import Fuser
from dmfnet_fast.commands import fuse_volumes
from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.commands.fuse import main
from dmfnet_fast.volumes.reading import read_volume
from tests.volumes.damaging import DAMAGES, NIFTI_DAMAGES, flipped_bit, nifti_bytes

CASES = 2 * len(DAMAGES)
NIFTI_CASES = 4 * len(NIFTI_DAMAGES)
SECONDS = 20
MEMORY = 300 * 2**10  # in KiB
PARTNERS = {"MR": "PT", "EMR": "PT", "PT": "MR", "CT": "MR", "NM": "MR"}

Fuse = Callable[..., Result]


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.fixture
def fuse(cli: CliRunner, fuser: Fuser, monkeypatch: pytest.MonkeyPatch) -> Fuse:
    """Runs the command with an engine that is open already, and without the report, which only sound volumes get."""
    monkeypatch.setattr(EngineOptions, "open", lambda _: nullcontext(fuser))
    monkeypatch.setattr(fuse_volumes, "_write_report", lambda *_: None)

    def invoke(*arguments: Any) -> Result:
        started = time.monotonic()
        result = cli.invoke(main, [*map(str, arguments)])
        assert time.monotonic() - started < SECONDS
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    return invoke


@pytest.fixture(scope="module")
def sound() -> dict[str, NDArray[Any]]:
    """What is fused from undamaged series, by the name of the one that tests damage."""
    return {}


def pair(name: str, damaged: Path, written: Path) -> tuple[Path, Path]:
    """The MRI first."""
    other = written / PARTNERS[name]
    return (damaged, other) if name in ("MR", "EMR") else (other, damaged)


def fused(output: Path) -> NDArray[Any]:
    folder = output / "fused"
    return read_volume(folder if folder.is_dir() else output / "fused.nii.gz").values


def errors_in(result: Result) -> list[str]:
    """Lines of standard error but for progress."""
    return [line for line in result.stderr.splitlines() if not line.startswith(("reading ", "fusing"))]


def check_refused(result: Result, *folders: Path) -> None:
    """One message that says which file is concerned and what to do, and nothing else."""
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = errors_in(result)
    messages = [line for line in lines if not line.startswith("warning: ")]
    assert messages, lines
    # What follows the first line are the volumes to choose from.
    assert messages[0].startswith("error: "), lines
    assert all(line.startswith("  ") for line in messages[1:]), lines
    assert len(messages) == 1 or "choose one by its UID" in messages[0]
    assert any(str(folder) in messages[0] for folder in folders), messages
    assert re.search(r"; |: give ", messages[0]), f"it says what to do: {messages[0]}"
    assert "Traceback" not in result.output


def check(result: Result, output: Path, expected: NDArray[Any], *folders: Path, levels: float = 0.0) -> None:
    """Refused, or fused as if nothing had happened (up to `levels`, on average), or with a warning of what is odd."""
    assert "hantom" not in result.output
    assert "PHANTOM" not in result.output
    if result.exit_code != 0:
        check_refused(result, *folders)
        assert not output.exists()
        return
    warnings = errors_in(result)
    assert all(line.startswith("warning: ") for line in warnings), warnings
    if not any(str(folder) in line for line in warnings for folder in folders):
        assert np.abs(fused(output).astype(int) - expected).mean() <= levels


@pytest.mark.parametrize("case", range(CASES))
def test_damaged_series(
    case: int,
    fuse: Fuse,
    sound: dict[str, NDArray[Any]],
    copied: Callable[[str], Path],
    written: Path,
    tmp_path: Path,
) -> None:
    draw = random.Random(1000 + case)
    name = draw.choice(sorted(PARTNERS))
    folder = copied(name)
    if name not in sound:
        assert fuse(*pair(name, folder, written), "-o", tmp_path / "sound").exit_code == 0
        sound[name] = fused(tmp_path / "sound")
    DAMAGES[case % len(DAMAGES)](draw.choice(sorted(folder.iterdir())), draw)
    result = fuse(*pair(name, folder, written), "-o", tmp_path / "out")
    check(result, tmp_path / "out", sound[name], folder)


@pytest.mark.parametrize("case", range(NIFTI_CASES))
def test_damaged_nifti(case: int, fuse: Fuse, sound: dict[str, NDArray[Any]], written: Path, tmp_path: Path) -> None:
    draw = random.Random(2000 + case)
    packed = draw.random() < 0.5
    mri, path = written / "MR.nii.gz", tmp_path / ("PT.nii.gz" if packed else "PT.nii")
    if "nifti" not in sound:
        assert fuse(mri, written / "PT.nii", "-o", tmp_path / "sound", "--modality-b", "PET").exit_code == 0
        sound["nifti"] = fused(tmp_path / "sound")
    content = bytearray((written / "PT.nii").read_bytes())
    NIFTI_DAMAGES[case % len(NIFTI_DAMAGES)](content, draw)
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    result = fuse(mri, path, "-o", tmp_path / "out", "--modality-b", "PET")
    # One byte more or less in a number may leave a number that is as good.
    different = NIFTI_DAMAGES[case % len(NIFTI_DAMAGES)] is nifti_bytes
    check(result, tmp_path / "out", sound["nifti"], path, levels=3.0 if different else 0.0)


@pytest.mark.parametrize("case", range(8))
def test_flipped_bit(case: int, fuse: Fuse, written: Path, tmp_path: Path) -> None:
    """The checksum at the end of a compressed file tells."""
    path = tmp_path / "MR.nii.gz"
    shutil.copy(written / "MR.nii.gz", path)
    flipped_bit(path, random.Random(case))
    result = fuse(path, written / "PT.nii", "-o", tmp_path / "out")
    check_refused(result, path)
    assert not (tmp_path / "out").exists()
