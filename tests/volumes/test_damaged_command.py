"""A fuzzer of `dmfnet-fuse`: whatever it is given, one clear message and nothing half-written, or the right image."""

from __future__ import annotations

import errno
import gzip
import os
import random
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
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

from dmfnet_fast.commands import fuse_volumes
from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.commands.fuse import main
from dmfnet_fast.volumes.fusing import Image, Take, fuse_slices, in_color
from dmfnet_fast.volumes.reading import read_volume
from dmfnet_fast.volumes.showing import Shown
from tests.volumes.damaging import DAMAGES, NIFTI_DAMAGES, flipped_bit, nifti_bytes
from tests.volumes.test_writing import full_disk

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


class Average:
    """Stands in for a `Fuser`: these tests are about files."""

    info = {"file": "average", "engine": "none", "device": "cpu", "precision": "float32", "weights": "0" * 64}  # noqa: RUF012

    def fuse_slices(self, a: Shown, b: Shown, take: Take, numbers: Iterable[int] | None = None) -> Iterator[int]:
        def fuse(pairs: list[tuple[Image, Image]]) -> list[Image]:
            return [in_color(one) // 2 + in_color(other) // 2 for one, other in pairs]

        return fuse_slices(fuse, 4, a, b, take, numbers)


@pytest.fixture
def fuse(cli: CliRunner, monkeypatch: pytest.MonkeyPatch) -> Fuse:
    """Runs the command without a network, and without the report, which only sound volumes get."""
    monkeypatch.setattr(EngineOptions, "open", lambda _: nullcontext(Average()))
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
    return [line for line in result.stderr.splitlines() if not line.startswith(("reading ", "aligning", "fusing"))]


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


def test_more_than_one_volume(fuse: Fuse, copied: Callable[[str], Path], written: Path, tmp_path: Path) -> None:
    """They are listed; nothing is chosen for the user."""
    folder = copied("MR")
    for path in sorted((written / "CT").iterdir()):
        shutil.copy(path, folder / f"ct-{path.name}")
    result = fuse(folder, written / "PT", "-o", tmp_path / "out")
    check_refused(result, folder)
    assert len(errors_in(result)) == 3
    assert not (tmp_path / "out").exists()


def test_several_phases(fuse: Fuse, written: Path, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "fmri.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((32, 32, 8, 20), np.int16), np.diag([4, 4, 4, 1])), path)
    result = fuse(written / "MR", path, "-o", tmp_path / "out")
    check_refused(result, path)
    assert "holds 20 volumes (4-D); write the one to fuse" in result.stderr


def test_what_is_no_file(fuse: Fuse, written: Path, tmp_path: Path) -> None:
    """Pipes, broken links, circles of links and folders with names of files are passed over; nothing waits for them."""
    folder = tmp_path / "PT"
    shutil.copytree(written / "PT", folder)
    os.mkfifo(folder / "0000.dcm")
    (folder / "broken.dcm").symlink_to(folder / "nowhere")
    (folder / "circle").symlink_to(folder)
    (folder / "folder.dcm").mkdir()
    result = fuse(written / "MR", folder, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    expected = fuse(written / "MR", written / "PT", "-o", tmp_path / "sound")
    assert expected.exit_code == 0
    np.testing.assert_array_equal(fused(tmp_path / "out"), fused(tmp_path / "sound"))


@pytest.mark.parametrize("where", ["", "below"])
def test_unreadable_folder(
    where: str,
    fuse: Fuse,
    copied: Callable[[str], Path],
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = copied("PT")
    (folder / "below").mkdir()
    locked = str(folder / where)

    def locking(read: Callable[..., Any]) -> Callable[..., Any]:
        def locked_read(path: Any = ".") -> Any:
            if os.fspath(path) == locked:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), locked)
            return read(path)

        return locked_read

    # A folder without permissions is open to root, who may run the tests.
    monkeypatch.setattr(os, "scandir", locking(os.scandir))
    monkeypatch.setattr(os, "listdir", locking(os.listdir))
    result = fuse(written / "MR", folder, "-o", tmp_path / "out")
    check_refused(result, Path(locked))
    assert "Permission denied; make it readable" in result.stderr
    assert not (tmp_path / "out").exists()


FORMATS = ("dicom", "nifti", "png")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("free", [200, 3000])
def test_a_full_disk(kind: str, free: int, fuse: Fuse, written: Path, tmp_path: Path) -> None:
    """What is there afterwards is complete, and once there is room the run goes on."""
    arguments = (written / "MR", written / "PT", "--format", kind, "-o")
    with full_disk(free):
        result = fuse(*arguments, tmp_path / "out")
    check_refused_by_output(result, tmp_path / "out")
    left = {path: path.read_bytes() for path in (tmp_path / "out").rglob("[!.]*") if path.is_file()}
    assert left == {} or (kind == "png" and free == 3000), "but for slices that fit"
    assert fuse(*arguments, tmp_path / "out").exit_code == 0
    assert all(path.read_bytes() == content for path, content in left.items())
    assert fuse(*arguments, tmp_path / "other").exit_code == 0
    assert contents(tmp_path / "out", kind) == contents(tmp_path / "other", kind)


def check_refused_by_output(result: Result, output: Path) -> None:
    assert result.exit_code == 2
    (message,) = errors_in(result)
    assert message.startswith(f"error: {output}")
    assert "Traceback" not in result.output


def contents(output: Path, kind: str) -> list[Any]:
    """What a result shows, in order."""
    if kind == "png":
        return [path.read_bytes() for path in sorted((output / "fused").glob("*.png"))]
    return fused(output).tolist()


@pytest.mark.parametrize("kind", FORMATS)
def test_places_where_nothing_can_be_written(kind: str, fuse: Fuse, written: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for output in (mine, mine / "below"):
        result = fuse(written / "MR", written / "PT", "--format", kind, "-o", output)
        check_refused_by_output(result, mine)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_result_that_is_someone_elses(kind: str, fuse: Fuse, written: Path, tmp_path: Path) -> None:
    name = {"dicom": "fused/0003.dcm", "png": "fused/0003.png", "nifti": "fused.nii.gz"}[kind]
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for more in ((), ("--overwrite",)):
        result = fuse(written / "MR", written / "PT", "--format", kind, "-o", tmp_path / "out", *more)
        check_refused_by_output(result, path)
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == [path]
    assert path.read_text() == "mine"


def test_into_a_source(fuse: Fuse, copied: Callable[[str], Path], written: Path) -> None:
    folder = copied("PT")
    before = sorted(folder.rglob("*"))
    for output in (folder, folder / "below"):
        result = fuse(written / "MR", folder, "-o", output)
        check_refused_by_output(result, folder)
    assert sorted(folder.rglob("*")) == before
