"""`dmfnet-fuse` on volumes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
nibabel = pytest.importorskip("nibabel", reason="needs the extra dicom")

from dmfnet_fast import Fuser
from dmfnet_fast.commands.fuse import main
from dmfnet_fast.images.io import write_image
from dmfnet_fast.volumes import align, read_volume, show
from dmfnet_fast.volumes.nifti import read_header, read_values
from dmfnet_fast.volumes.phantom import HeadVolumes, make_head, write_head, write_nifti
from dmfnet_fast.volumes.writing import VolumeWriter
from tests.volumes.damaging import edit

Fuse = Callable[..., Result]
PAGES = ["alignment.png", "report.html", "report.json"]


@pytest.fixture(scope="module")
def head() -> HeadVolumes:
    return make_head(seed=1, size=48)


@pytest.fixture(scope="module")
def written(head: HeadVolumes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    write_head(head, folder)
    write_nifti(head.mr, folder / "MR.nii.gz")
    write_nifti(head.pet, folder / "PT.nii")
    write_nifti(head.ct, folder / "CT.nii.gz")
    return folder


@pytest.fixture
def inputs(written: Path, tmp_path: Path) -> Path:
    """Folders MR, CT, PT and NM, and MR.nii.gz, CT.nii.gz and PT.nii; may be changed."""
    return Path(shutil.copytree(written, tmp_path / "in"))


@pytest.fixture(scope="module")
def fuse() -> Fuse:
    def invoke(*arguments: Any) -> Result:
        result = CliRunner().invoke(main, [*map(str, arguments), "--precision", "float32"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


@pytest.fixture(scope="module")
def pet(fuse: Fuse, written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MR fused with the PET; not to be changed."""
    out = tmp_path_factory.mktemp("pet") / "out"
    result = fuse(written / "MR", written / "PT", "-o", out)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{out / 'fused'}: 10 fused, 0 already there\n{out / 'report.html'}\n"
    return out


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2
    last = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(last) == 1
    assert message in last[0]


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def expected(a: Path, b: Path, **options: Any) -> np.ndarray:
    """What `fuse_volume` makes of the files."""
    with Fuser(precision="float32") as fuser:
        values: np.ndarray = fuser.fuse_volume(read_volume(a), read_volume(b), **options).values
    return values


def pixels(folder: Path) -> np.ndarray:
    """The fused DICOM series, in the order of its files."""
    return np.stack([pydicom.dcmread(path).pixel_array for path in sorted((folder / "fused").glob("*.dcm"))])


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_dicom(pet: Path, written: Path) -> None:
    assert names(pet) == ["alignment.png", "fused", "report.html", "report.json"]
    assert np.array_equal(pixels(pet), expected(written / "MR", written / "PT"))


@pytest.mark.parametrize("name", ["dicom", "nifti"])
def test_left_is_left(name: str, fuse: Fuse, pet: Path, written: Path, tmp_path: Path) -> None:
    """As another program reads the result: the lesion is on the patient's left, in front, above."""
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra register")
    paths: Any = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(pet / "fused"))
    if name == "nifti":
        paths = str(tmp_path / "fused.nii.gz")
        assert fuse(written / "MR.nii.gz", written / "PT.nii", "-o", paths, "--modality-b", "PET").exit_code == 0
    image = sitk.ReadImage(paths)
    bright = {
        (x, y, z): sum(image[image.TransformPhysicalPointToIndex((34.0 * x, 34.0 * y, 22.0 * z))])
        for x in (1, -1)
        for y in (1, -1)
        for z in (1, -1)
    }
    assert max(bright, key=lambda place: bright[place]) == (1, -1, 1), bright


def test_sources_are_never_changed(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    before = hashes(inputs)
    assert fuse(inputs / "MR", inputs / "NM", "-o", tmp_path / "out").exit_code == 0
    assert hashes(inputs) == before


def test_report(pet: Path) -> None:
    found = report(pet)
    assert found["made_by"] == "dmfnet-fuse"
    assert "not for diagnosis" in found["notice"]
    assert found["sources"]["a"]["modality"] == "MR"
    assert found["sources"]["b"]["units"] == "SUV"
    assert found["sources"]["b"]["files"] == 16
    assert found["display"]["b"] == {"range": [0.0, 7.5], "units": "SUV", "colormap": "hot-iron"}
    assert found["display"]["a"]["colormap"] is None
    assert found["grid"]["shape"] == [10, 48, 48]
    assert found["alignment"]["registered"] is False
    assert found["alignment"]["coverage"] > 0.95
    assert len(found["engine"]["weights"]) == 64
    assert found["output"] == {"format": "dicom", "files": 10}
    assert found["pumping"]["ratio"] < found["pumping"]["limit"] == 2
    assert len(found["pumping"]["slice_means"]["fused"]) == 10
    assert {"dmfnet-fast", "numpy", "pydicom", "python"} <= set(found["versions"])
    assert found["warnings"] == []


def test_nothing_names_the_patient_or_its_folders(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    named = inputs / "PHANTOM^HEAD"
    named.mkdir()
    for series in ("MR", "PT"):
        (inputs / series).rename(named / series)
    (named / "PT" / "Phantom.txt").write_text("Phantom^Head")
    for path in sorted((named / "PT").glob("*.dcm")):
        edit(path, lambda data: setattr(data, "FrameOfReferenceUID", "1.2.3"))
    out = tmp_path / "out"
    result = fuse(named / "MR", named / "PT", "-o", out)
    assert result.exit_code == 0
    assert "different frames of reference" in result.stderr
    texts = [path for path in out.rglob("*") if path.suffix in (".json", ".jsonl", ".html")]
    assert len(texts) == 4
    for path in texts:
        assert not re.search("phantom.?head|named|19700101", path.read_text(), re.IGNORECASE), path
    assert "1 file left out: not DICOM" in report(out)["sources"]["b"]["notes"]
    assert report(out)["warnings"] == [
        "A and B have different frames of reference, so their headers do not say how they lie to each other: look at "
        "the alignment, or try --register"
    ]


def test_page_is_self_contained_and_shows_three_planes(pet: Path) -> None:
    page = (pet / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) > 20
    assert all(source.startswith("data:image/") for source in sources)
    for text in ("not for diagnosis", "slice 5 of 10", "across slices, along columns", "hot-iron", 'alt="legend"'):
        assert text in page
    with Image.open(pet / "alignment.png") as image:
        assert image.size[0] == 960


def test_nifti(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "some" / "fused head.nii.gz"
    result = fuse(inputs / "MR.nii.gz", inputs / "PT.nii", "-o", out, "--modality-b", "PET")
    assert result.exit_code == 0, result.stderr
    assert names(out.parent) == [
        "fused head-alignment.png",
        "fused head-report.html",
        "fused head-report.json",
        out.name,
    ]
    values, _ = read_values(read_header(out))
    mr, pet = read_volume(inputs / "MR.nii.gz", modality="MR"), read_volume(inputs / "PT.nii", modality="PT")
    with Fuser(precision="float32") as fuser:
        assert np.array_equal(values, fuser.fuse_volume(mr, pet).values)
    assert np.allclose(read_header(out).affine, mr.affine, atol=1e-4)


def test_nifti_into_a_folder(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fuse(inputs / "MR.nii.gz", inputs / "CT.nii.gz", "-o", out, "--modality-b", "ct").exit_code == 0
    assert names(out) == ["alignment.png", "fused.nii.gz", "report.html", "report.json"]
    assert report(out)["display"]["b"] == {"range": [-100.0, 500.0], "units": "HU", "colormap": None}


def test_nifti_that_does_not_say_what_it_shows_stays_gray(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = fuse(inputs / "MR.nii.gz", inputs / "PT.nii", "-o", out)
    assert "PT.nii: does not say what it shows, so it stays gray" in result.stderr
    assert report(out)["warnings"][0].startswith("B: does not say what it shows")
    values, _ = read_values(read_header(out / "fused.nii.gz"))
    assert (values == values[..., :1]).all()


def test_png(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fuse(inputs / "MR", inputs / "NM", "-o", out, "--format", "png").exit_code == 0
    assert names(out / "fused") == [f"{number:04d}.png" for number in range(1, 11)]
    assert report(out)["output"] == {"format": "png", "files": 10}


def test_dicom_as_nifti_and_mixed_kinds(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    assert fuse(inputs / "MR", inputs / "CT", "-o", tmp_path / "x.nii").exit_code == 0
    assert (tmp_path / "x.nii").exists()
    mixed = fuse(inputs / "MR", inputs / "CT.nii.gz", "-o", tmp_path / "mixed", "--modality-b", "CT")
    assert mixed.exit_code == 0
    assert len(pixels(tmp_path / "mixed")) == 10, "as the volume whose grid it has"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MR.nii.gz", "CT", "--format", "dicom"), "MR.nii.gz: is not DICOM, so it names no patient and no study"),
        (("MR", "PT.nii", "--format", "dicom", "--grid", "b"), "PT.nii: is not DICOM, so it names no patient"),
        (("MR.nii.gz", "PT.nii", "--label", "x"), "label 'x': is drawn only into DICOM"),
        (("MR", "CT", "-o", "out.nii", "--format", "dicom"), "out.nii: is a name for NIfTI"),
        (("MR", "CT", "-o", "CT/out"), "lies in the input folder CT"),
    ],
)
def test_what_cannot_be_written_is_refused_before_reading(
    fuse: Fuse, inputs: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(inputs)
    monkeypatch.setattr("dmfnet_fast.commands.fuse_volumes.read_volume", lambda *_, **__: pytest.fail("was read"))
    refused(fuse(*arguments, *(() if "-o" in arguments else ("-o", "out"))), message)
    assert not Path("out").exists()


def test_one_file_and_dicomdir_are_volumes(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    assert fuse(inputs / "MR", inputs / "NM" / "tomogram.dcm", "-o", tmp_path / "out").exit_code == 0
    refused(fuse(inputs / "MR", inputs / "DICOMDIR", "-o", tmp_path / "x"), "DICOMDIR: no such file")


def test_slices_go_through_fuse_unchanged(head: HeadVolumes) -> None:
    large = make_head(seed=2, size=64)
    alignment = align(large.mr, large.pet)
    a, b = show(alignment.a), show(alignment.b)
    with Fuser(precision="float32") as fuser:
        fused = fuser.fuse_volume(large.mr, large.pet)
        for number in (2, 7):
            assert np.array_equal(fuser.fuse(a.image(number), b.image(number)), fused.values[number])
        again = fuser.fuse_volume(alignment.a, alignment.b)
    assert np.array_equal(again.values, fused.values), "volumes on one grid are taken as they are"
    assert fused.color
    assert np.array_equal(fused.affine, large.mr.affine)
    assert head.mr.shape == (10, 48, 48)


def test_series_are_chosen(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    several = fuse(inputs, inputs / "PT", "-o", tmp_path / "out")
    assert several.exit_code == 2
    assert "holds 4 volumes; choose one by its UID (--series-a or --series-b UID)" in several.stderr
    uid = pydicom.dcmread(next((inputs / "MR").iterdir())).SeriesInstanceUID
    other = pydicom.dcmread(next((inputs / "CT").iterdir())).SeriesInstanceUID
    result = fuse(inputs, inputs, "-o", tmp_path / "out", "--series-a", uid, "--series-b", other)
    assert result.exit_code == 0, result.stderr
    assert report(tmp_path / "out")["sources"]["b"]["series"] == other


def test_other_patients(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    for path in (inputs / "PT").glob("*.dcm"):
        edit(path, lambda data: setattr(data, "PatientID", "OTHER"))
    refused(fuse(inputs / "MR", inputs / "PT", "-o", tmp_path / "out"), "name different patients (PatientID differs)")
    assert not (tmp_path / "out").exists()
    forced = fuse(inputs / "MR", inputs / "PT", "-o", tmp_path / "out", "--force-patient")
    assert forced.exit_code == 0
    assert "warning:" in forced.stderr
    assert "OTHER" not in forced.stderr
    assert "different patients" in report(tmp_path / "out")["warnings"][0]


def test_grid_of_b(fuse: Fuse, inputs: Path, head: HeadVolumes, tmp_path: Path) -> None:
    assert fuse(inputs / "MR", inputs / "CT", "-o", tmp_path / "out", "--grid", "b").exit_code == 0
    assert pixels(tmp_path / "out").shape == (*head.ct.shape, 3)
    assert report(tmp_path / "out")["grid"]["of"] == "b"


def test_ranges_and_colormap(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stated = ("--range-a", 0, 2000, "--range-b", 1, 5, "--colormap", "pet")
    assert fuse(inputs / "MR", inputs / "PT", "-o", out, *stated).exit_code == 0
    assert report(out)["display"]["a"]["range"] == [0, 2000]
    assert report(out)["display"]["b"] == {"range": [1, 5], "units": "SUV", "colormap": "pet"}
    assert np.array_equal(
        pixels(out), expected(inputs / "MR", inputs / "PT", range=((0, 2000), (1, 5)), colormap="pet")
    )
    assert fuse(inputs / "MR", inputs / "PT", "-o", tmp_path / "gray", "--colormap", "gray").exit_code == 0
    gray = pixels(tmp_path / "gray")
    assert (gray == gray[..., :1]).all()


def test_label(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    assert fuse(inputs / "MR", inputs / "CT", "-o", tmp_path / "out", "--label", "test").exit_code == 0
    assert pydicom.dcmread(tmp_path / "out" / "fused" / "0001.dcm").BurnedInAnnotation == "YES"


def test_register(fuse: Fuse, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = np.eye(4)
    moved[:3, 3] = 2, -1, 3
    monkeypatch.setattr("dmfnet_fast.volumes.alignment.register_rigid", lambda _a, _b: (moved, 0.5))
    result = fuse(inputs / "MR", inputs / "CT", "-o", tmp_path / "out", "--register")
    found = report(tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert found["alignment"]["registered"] is True
    assert found["alignment"]["inverse_error_mm"] == 0.5
    assert found["alignment"]["transform_lps_mm"] == moved.tolist()
    assert "look at the alignment" in found["warnings"][0]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("CT", "MR", "{a} is CT and {b} is MR: are they swapped? The MRI comes first"),
        ("CT", "PT", "{a} is CT, and the networks expect an MRI: is it the right series?"),
        ("MR", "MR", "{b}: holds the same volume as {a}: is it the right series?"),
    ],
)
def test_unlikely_series_warn(
    fuse: Fuse, inputs: Path, monkeypatch: pytest.MonkeyPatch, a: str, b: str, message: str
) -> None:
    """Reports say A and B; names of folders do not get mixed up with words of the message."""
    monkeypatch.chdir(inputs)
    result = fuse(a, b, "-o", "out")
    assert f"warning: {message.format(a=a, b=b)}" in result.stderr.splitlines()
    assert report(Path("out"))["warnings"] == [message.format(a="A", b="B")]


def test_reports_name_no_files(fuse: Fuse, inputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wherever the command runs: names of files may be a patient's."""
    monkeypatch.chdir(inputs / "PT")
    shutil.copy("0003.dcm", "roe jane.dcm")
    Path("jane.txt").write_text("notes")
    result = fuse(inputs / "MR", ".", "-o", tmp_path / "out")
    assert "warning: roe jane.dcm: is a copy of 0003.dcm; left out" in result.stderr.splitlines()
    found = report(tmp_path / "out")
    assert found["warnings"] == ["B: one file: is a copy of another; left out"]
    assert found["sources"]["b"]["notes"][0] == "one file: is a copy of another; left out"
    assert "1 file left out: not DICOM" in found["sources"]["b"]["notes"]
    for name in PAGES[1:]:
        assert "jane" not in (tmp_path / "out" / name).read_text()


def test_a_range_in_other_units_warns(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    result = fuse(inputs / "MR", inputs / "PT", "-o", tmp_path / "out", "--range-b", 20_000, 30_000)
    assert "--range-b 20000 30000: no value of the head lies between them" in result.stderr
    assert report(tmp_path / "out")["warnings"][0].endswith("(SUV)")


def test_a_volume_that_shows_nothing_is_refused_before_anything_is_written(
    fuse: Fuse, inputs: Path, tmp_path: Path
) -> None:
    image = nibabel.load(inputs / "PT.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), tmp_path / "zero.nii")
    options = ("-o", tmp_path / "out", "--range-b", 0, 5)
    refused(fuse(inputs / "MR", tmp_path / "zero.nii", *options), "zero.nii: shows nothing")
    refused(fuse(tmp_path / "zero.nii", inputs / "PT", *options), "zero.nii: shows nothing")
    assert not (tmp_path / "out").exists()


def test_one_format_in_a_folder(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    """A report is about all that lies beside it."""
    arguments = (inputs / "MR", inputs / "PT", "-o", tmp_path / "out")
    for kind, other in (("dicom", "png"), ("png", "nifti"), ("nifti", "dicom")):
        assert fuse(*arguments, "--format", kind, "--overwrite").exit_code == 0
        before = hashes(tmp_path / "out")
        refused(fuse(*arguments, "--format", other), f"holds a result in another format ({kind})")
        assert hashes(tmp_path / "out") == before
        assert report(tmp_path / "out")["output"]["format"] == kind
    assert names(tmp_path / "out") == ["alignment.png", "fused.nii.gz", "report.html", "report.json"]
    others = (inputs / "MR", inputs / "PT", "-o", tmp_path / "files" / "x.nii")
    assert fuse(*arguments[:2], "-o", tmp_path / "files" / "x.nii.gz").exit_code == 0
    refused(fuse(*others), "holds a result in another format (x.nii.gz)")
    assert fuse(*others, "--overwrite").exit_code == 0
    assert names(tmp_path / "files") == ["x-alignment.png", "x-report.html", "x-report.json", "x.nii"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MR", "PT", "-o", "out", "--montage"), "--montage: is not for volumes"),
        (("MR", "PT", "-o", "out", "--format", "tif"), "--format tif: is not for volumes; use dicom, nifti or png"),
        (("MR", "pngs", "-o", "out"), "MR is a volume (DICOM or NIfTI), and pngs is not"),
        (("pngs/1.png", "MR.nii.gz", "-o", "out"), "MR.nii.gz is a volume (DICOM or NIfTI), and pngs/1.png is not"),
        (("MR", "missing", "-o", "out"), "missing: no such file or folder"),
        (("MR", "PT", "-o", "MR"), "lies in the input folder MR"),
        (("MR", "PT", "-o", "notes.txt"), "notes.txt"),
        (("MR", "PT", "-o", "x.dcm"), "x.dcm: names a file; volumes are fused into a folder, or into one .nii.gz"),
        (("MR", "PT", "-o", "x.nii.gz", "--format", "png"), "x.nii.gz"),
        (("MR.nii.gz", "PT.nii", "-o", "PT.nii", "--modality-b", "PET"), "PT.nii: is one of the inputs"),
        (("MR", "PT", "-o", "out", "--range-b", "5", "5"), "--range-b: range (5, 5) must be two finite numbers"),
        (("MR", "PT", "-o", "out", "--modality-b", "CT"), "PT: is PT, not CT"),
        (("MR", "PT", "-o", "out", "--series-b", "1.2"), "PT: holds no series 1.2"),
        (("MR", "PT", "-o", "taken"), "taken/report.json: already exists and was not made by this command"),
        (("text", "text", "-o", "out"), "hold no images"),
        (("nifti", "PT", "-o", "out"), "nifti: is a folder with NIfTI files; give one of them by its name"),
        (("pngs/1.png", "pngs/1.png", "-o", "x.png", "--grid", "b"), "--grid: is not for images"),
        (("pngs", "pngs", "-o", "out", "--register"), "--register: is not for images"),
        (("pngs", "pngs", "-o", "out", "--force-patient"), "--force-patient: is not for images"),
        (("pngs", "pngs", "-o", "out", "--format", "dicom"), "--format dicom: is not for images; use png, tif, tiff"),
    ],
)  # fmt: skip
def test_bad_input(
    fuse: Fuse, inputs: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(inputs)
    for folder in ("pngs", "text", "nifti", "taken"):
        Path(folder).mkdir()
    write_image("pngs/1.png", np.zeros((64, 64), np.uint8))
    Path("text/readme.txt").write_text("hello")
    Path("notes.txt").write_text("mine")
    Path("taken/report.json").write_text("{}")
    shutil.copy("PT.nii", "nifti")
    before = hashes(inputs)
    refused(fuse(*arguments), message)
    assert hashes(inputs) == before, "nothing is written"
    assert not Path("out").exists()


def test_folders_of_images_and_of_dicom_are_told_apart(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("1.png", "2.png"):
        write_image(images / name, np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    shutil.copytree(inputs / "MR", images / "dicom")
    shutil.copy(inputs / "MR" / "0001.dcm", images)
    assert "2 fused" in fuse(images, images, "-o", tmp_path / "paired").stdout, (
        "neither DICOM below nor a lone file matter"
    )
    write_image(inputs / "MR" / "preview.png", np.zeros((64, 64), np.uint8))
    below = tmp_path / "export"
    shutil.copytree(inputs / "CT", below / "STU0" / "SER0")
    result = fuse(inputs / "MR", below, "-o", tmp_path / "volume")
    assert result.exit_code == 0, result.stderr
    assert len(pixels(tmp_path / "volume")) == 10, "images beside DICOM do not matter"
    for number in range(1, 10):
        write_image(inputs / "MR" / f"preview{number}.png", np.zeros((64, 64), np.uint8))
    refused(
        fuse(inputs / "MR", below, "-o", tmp_path / "x"), "holds as many images as DICOM or NIfTI files (10), so it is"
    )


def test_files_without_preamble_are_found(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (inputs / "CT").glob("*.dcm"):
        data = pydicom.dcmread(path)
        del data.preamble
        del data.file_meta
        data.save_as(bare / path.stem, implicit_vr=True, little_endian=True, enforce_file_format=False)
    result = fuse(inputs / "MR", bare, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr


def test_json(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    printed = json.loads(fuse(inputs / "MR", inputs / "PT", "-o", out, "--json").stdout)
    assert printed["slices"] == {"fused": 10, "already_there": 0}
    assert printed["files"][0] == str(out / "fused" / "0001.dcm")
    assert printed["pumping"] == report(out)["pumping"]
    failed = fuse(inputs / "MR", inputs / "none", "-o", out, "--json")
    assert failed.exit_code == 2
    assert "no such file or folder" in json.loads(failed.stdout)["error"]


@pytest.mark.parametrize("kind", ["dicom", "nifti", "png"])
def test_interrupted_runs_go_on(
    fuse: Fuse, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = (inputs / "MR", inputs / "PT", "--format", kind)
    original = VolumeWriter.write
    with monkeypatch.context() as patch:

        def fails(self: VolumeWriter, index: int, rgb: np.ndarray) -> None:
            if index == 6:
                raise OSError("the disk is gone")
            original(self, index, rgb)

        patch.setattr(VolumeWriter, "write", fails)
        refused(fuse(*arguments, "-o", out), "the disk is gone")
    assert not any((out / name).exists() for name in PAGES), "no report of half a volume"
    resumed = fuse(*arguments, "-o", out)
    assert resumed.exit_code == 0, resumed.stderr
    there = int(re.findall(r"(\d+) already there", resumed.stdout)[0])
    assert 4 <= there <= 9
    assert f"fusing ({there} of 10 slices are already there): 0 of " in resumed.stderr
    assert fuse(*arguments, "-o", whole).exit_code == 0
    assert report(out)["pumping"] == report(whole)["pumping"]
    if kind != "dicom":
        for path in [*(whole / "fused").glob("*.png"), *whole.glob("*.nii.gz")]:
            assert path.read_bytes() == (out / path.relative_to(whole)).read_bytes()
    else:
        assert np.array_equal(pixels(out), pixels(whole))
    cuts = [re.findall('base64,([^"]+)', (folder / "report.html").read_text()) for folder in (out, whole)]
    assert cuts[0] == cuts[1], "the page is the same"


def test_repeated_and_changed_runs(fuse: Fuse, inputs: Path, tmp_path: Path) -> None:
    arguments = (inputs / "MR", inputs / "PT", "-o", tmp_path / "out")
    assert "10 fused, 0 already there" in fuse(*arguments).stdout
    first = sorted((tmp_path / "out" / "fused").glob("*.dcm"))[0].read_bytes()
    again = fuse(*arguments)
    assert "0 fused, 10 already there" in again.stdout
    assert "fusing for the report (10 of 10 slices are already there): 0 of " in again.stderr
    refused(fuse(*arguments, "--colormap", "pet"), "holds a result of other inputs or settings")
    assert sorted((tmp_path / "out" / "fused").glob("*.dcm"))[0].read_bytes() == first
    assert report(tmp_path / "out")["display"]["b"]["colormap"] == "hot-iron"
    assert "10 fused" in fuse(*arguments, "--colormap", "pet", "--overwrite").stdout
    assert report(tmp_path / "out")["display"]["b"]["colormap"] == "pet"


def test_slices_are_written_while_others_are_fused(
    fuse: Fuse, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = threading.Event()
    fused: list[int] = []
    compute, write = Fuser._fuse_images, VolumeWriter.write

    def computed(self: Fuser, *arguments: Any) -> Any:
        result = compute(self, *arguments)
        fused.append(len(fused))
        if len(fused) == 2:
            second.set()
        return result

    def wait(self: VolumeWriter, index: int, rgb: np.ndarray) -> None:
        assert second.wait(20), "the second slice must be fused while the first is being written"
        write(self, index, rgb)

    monkeypatch.setattr(Fuser, "_fuse_images", computed)
    monkeypatch.setattr(VolumeWriter, "write", wait)
    assert fuse(inputs / "MR", inputs / "PT", "-o", tmp_path / "out").exit_code == 0
