"""`dmfnet-fuse` from the command line."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dmfnet_fast import Fuser
from dmfnet_fast.commands import fuse as command
from dmfnet_fast.commands.fuse import main
from dmfnet_fast.commands.fuse_images import fuse_images
from dmfnet_fast.commands.journal import JOURNAL, Job
from dmfnet_fast.images.io import load_image, read_image, write_image
from dmfnet_fast.phantom import Phantom, make_phantom


@pytest.fixture
def fuse(cli: CliRunner, tiny_weights: Path) -> Any:
    def invoke(*arguments: Any, engine: Any = tiny_weights) -> Result:
        result = cli.invoke(main, [*map(str, arguments), "--engine", str(engine), "--precision", "float32"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three pairs, one of them with different suffixes, and files that are not images."""
    a, b = tmp_path / "mri", tmp_path / "pet"
    for folder in (a, b):
        folder.mkdir()
    for number in range(3):
        head = make_phantom(number, 64)
        write_image(a / f"{number}.png", head.mri)
        write_image(b / f"{number}.{'tif' if number == 2 else 'png'}", head.pet)
    (a / "notes.txt").write_text("hello")
    (a / ".DS_Store").write_bytes(b"x")
    return a, b, tmp_path / "fused"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_files(fuse: Any, fuser: Fuser, pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "fused.png"
    result = fuse(*pair, "-o", output)
    assert result.exit_code == 0
    assert result.stdout == f"{output}\n"
    assert np.array_equal(read_image(output), np.asarray(fuser.fuse(*pair)))


def test_rules(fuse: Any, tiny_weights: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "fused.png"
    assert fuse(*pair, "-o", output, "--keep-chroma", 0.2, "--allow-invention").exit_code == 0
    with Fuser(tiny_weights, precision="float32", keep_chroma=0.2, allow_invention=True) as fuser:
        assert np.array_equal(read_image(output), np.asarray(fuser.fuse(*pair)))
    refused = fuse(*pair, "-o", output, "--keep-chroma", 1.5)
    assert refused.exit_code == 2
    assert "1.5 is not in the range 0<=x<=1" in refused.stderr


@pytest.mark.parametrize(("suffix", "kind"), [("tif", "TIFF"), ("bmp", "BMP"), ("jpg", "JPEG"), ("PNG", "PNG")])
def test_formats(fuse: Any, fuser: Fuser, pair: tuple[Path, Path], tmp_path: Path, suffix: str, kind: str) -> None:
    output = tmp_path / f"fused.{suffix}"
    assert fuse(*pair, "-o", output).exit_code == 0
    with Image.open(output) as image:
        assert image.format == kind
        difference = np.asarray(image).astype(int) - np.asarray(fuser.fuse(*pair))
    assert np.abs(difference).mean() <= (3 if kind == "JPEG" else 0)


def test_into_a_folder(fuse: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert fuse(*pair, "-o", tmp_path / "out").exit_code == 0
    assert names(tmp_path / "out") == ["pet.png"]


def test_montage(fuse: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = fuse(*pair, "-o", tmp_path / "fused.tif", "--montage")
    side_by_side = tmp_path / "fused-montage.png"
    assert str(side_by_side) in result.stdout
    pixels = read_image(side_by_side)
    assert pixels.shape[1] > 3 * 64
    assert np.array_equal(pixels[-72:-8, -72:-8], read_image(tmp_path / "fused.tif"))


def test_16_bit_stays_16_bit(fuse: Any, phantom: Phantom, pair: tuple[Path, Path], tmp_path: Path) -> None:
    write_image(tmp_path / "ct.png", phantom.ct.astype(np.uint16) * 16)
    guessed = fuse(pair[0], tmp_path / "ct.png", "-o", tmp_path / "guessed.png")
    assert "warning:" in guessed.stderr
    assert "ct.png: its largest value is" in guessed.stderr
    stated = fuse(pair[0], tmp_path / "ct.png", "-o", tmp_path / "stated.png", "--range-b", 0, 4095)
    assert stated.stderr == ""
    pixels = read_image(tmp_path / "stated.png")
    assert pixels.dtype == np.uint16
    assert pixels.max() > 2000
    assert np.array_equal(pixels, read_image(tmp_path / "guessed.png"))


def test_16_bit_color_stays_16_bit(fuse: Any, phantom: Phantom, pair: tuple[Path, Path], tmp_path: Path) -> None:
    write_image(tmp_path / "pet16.png", phantom.pet.astype(np.uint16) * 257)
    assert fuse(pair[0], tmp_path / "pet16.png", "-o", tmp_path / "fused.png").exit_code == 0
    pixels = read_image(tmp_path / "fused.png")
    assert pixels.dtype == np.uint16
    assert pixels.shape == (64, 64, 3)
    assert (pixels % 257).any(), "more than 8 bits"


def test_two_folders(fuse: Any, fuser: Fuser, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    result = fuse(a, b, "-o", output, "--montage")
    assert result.exit_code == 0
    assert "3 fused, 0 already there, 0 failed, 1 other files ignored" in result.stdout
    assert names(output) == [JOURNAL, "0.png", "1.png", "2.png", "montages"]
    assert names(output / "montages") == ["0.png", "1.png", "2.png"]
    expected = fuser.fuse(a / "2.png", b / "2.tif")
    assert np.array_equal(read_image(output / "2.png"), np.asarray(expected))


def test_two_folders_into_a_file(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    output.write_text("mine")
    result = fuse(a, b, "-o", output)
    assert result.exit_code == 2
    assert result.stderr == f"error: {output}: is a file; two folders are fused into a folder\n"
    assert output.read_text() == "mine"


def test_folder_resumes(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    fuse(a, b, "-o", output)
    (output / "1.png").unlink()
    kept = (output / "0.png").stat().st_mtime_ns
    assert "1 fused, 2 already there" in fuse(a, b, "-o", output).stdout
    assert (output / "0.png").stat().st_mtime_ns == kept
    write_image(b / "2.tif", make_phantom(7, 64).pet)
    assert "1 fused, 2 already there" in fuse(a, b, "-o", output).stdout, "a changed input is fused again"
    assert "0 fused, 3 already there" in fuse(a, b, "-o", output).stdout
    assert "3 fused, 0 already there" in fuse(a, b, "-o", output, "--seed", 5).stdout, "so is another seed"
    more = ("--seed", 5, "--keep-chroma", 0.5)
    assert "3 fused, 0 already there" in fuse(a, b, "-o", output, *more).stdout, "and another rule"
    assert "3 fused, 0 already there" in fuse(a, b, "-o", output, "--overwrite").stdout


def test_only_reproducible_results_are_kept(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    fuse(a, b, "-o", output)
    good = (output / "1.png").read_bytes()
    fuse(a / "0.png", b / "0.png", "-o", output / "1.png", "--seed", 5)
    (output / "2.png").write_bytes(b"")
    assert "2 fused, 1 already there" in fuse(a, b, "-o", output).stdout
    assert (output / "1.png").read_bytes() == good


def test_interrupted_folders_go_on(
    fuse: Any, folders: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, output = folders
    with monkeypatch.context() as patch:

        def interrupted(job: Job, *given: Any) -> None:
            if Path(job.a).stem == "2":
                raise KeyboardInterrupt
            fuse_images(job, *given)

        patch.setattr(command, "fuse_images", interrupted)
        result = fuse(a, b, "-o", output)
        assert result.exit_code == 1
        assert "interrupted: what is done is kept; repeat the command to go on" in result.stderr
        single = fuse(a / "2.png", b / "2.tif", "-o", tmp_path / "2.png")
        assert single.exit_code == 1
        assert "interrupted" not in single.stderr, "nothing is kept of it"
    assert "1 fused, 2 already there" in fuse(a, b, "-o", output).stdout


def test_foreign_files_are_not_replaced(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    output.mkdir()
    (output / "1.png").write_bytes(b"precious")
    result = fuse(a, b, "-o", output)
    assert result.exit_code == 2
    assert "2 fused, 0 already there, 1 failed" in result.stdout
    assert "was not made by this command" in result.stderr
    assert (output / "1.png").read_bytes() == b"precious"
    assert "3 fused" in fuse(a, b, "-o", output, "--overwrite").stdout


def test_inputs_are_not_replaced(fuse: Any, folders: tuple[Path, Path, Path], pair: tuple[Path, Path]) -> None:
    a, b, output = folders
    fuse(a, b, "-o", output, "--montage")
    assert "is one of the inputs" in fuse(output / "montages", b, "-o", output, "--montage", "--overwrite").stderr
    lone = pair[0].rename(pair[0].with_name("x-montage.png"))
    assert "is one of the inputs" in fuse(lone, pair[1], "-o", lone.with_name("x.png"), "--montage").stderr


def test_unusable_journal(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    (output / JOURNAL).mkdir(parents=True)
    result = fuse(a, b, "-o", output)
    assert result.exit_code == 2
    assert f"{JOURNAL}: cannot be read and written" in result.stderr


def test_unused_range_warns(fuse: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert "its range is not used" in fuse(*pair, "-o", tmp_path / "x.png", "--range-b", 0, 90).stderr


def test_one_bad_file_does_not_stop_the_rest(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    (a / "0.png").write_bytes(b"not an image")
    write_image(a / "1.png", np.zeros((64, 80), np.uint8))
    write_image(a / "lonely.png", np.zeros((64, 64), np.uint8))
    write_image(b / "2.png", np.zeros((64, 64), np.uint8))
    write_image(a / "3.png", make_phantom(9, 64).mri)
    write_image(b / "3.png", make_phantom(9, 64).ct)
    result = fuse(a, b, "-o", output)
    assert result.exit_code == 2
    assert "1 fused, 0 already there, 4 failed" in result.stdout
    for message in ("0.png: is not an image", "register them", "lonely.png: has no partner", "has the same name"):
        assert message in result.stderr
    assert "no two images have one name" not in result.stderr
    assert "Traceback" not in result.stderr
    assert names(output) == [JOURNAL, "3.png"]


def test_names_that_differ(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    for path in (*a.iterdir(), *b.iterdir()):
        path.rename(path.with_stem(f"{'Head' if path.parent == a else 'head'}{path.stem}"))
    result = fuse(a, b, "-o", output)
    assert result.exit_code == 2
    assert f"warning: {a}, {b}: no two images have one name; rename them, or name the pairs in a table" in result.stderr
    assert f"error: {a / 'Head0.png'}: has no partner in {b}, where head0.png differs in case\n" in result.stderr


def test_json(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    (a / "0.png").write_bytes(b"")
    result = fuse(a, b, "-o", output, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 2
    assert (report["fused"], report["skipped"], report["failed"]) == (2, 0, 1)
    assert report["engine"]["device"] == "cpu"
    assert len(report["engine"]["weights"]) == 64
    first, second, _ = report["pairs"]
    assert first["status"] == "failed"
    assert "is empty" in first["error"]
    assert second["status"] == "fused"
    assert second["output"] == str(output / "1.png")
    assert second["size"] == [64, 64]
    assert second["seconds"] > 0


@pytest.mark.parametrize("b", ["empty", "missing", "mri"])
def test_json_report_of_a_fatal_error(fuse: Any, folders: tuple[Path, Path, Path], b: str) -> None:
    a, _, output = folders
    (a.parent / "empty").mkdir()
    engine = {"engine": a / "0.png"} if b == "mri" else {}
    result = fuse(a.parent / "empty" if b == "empty" else a, a.parent / b, "-o", output, "--json", **engine)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] in result.stderr
    assert not output.exists(), "no empty folder is left"


def test_an_unforeseen_failure_does_not_stop_the_rest(
    fuse: Any, folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, output = folders
    original = Fuser.fuse

    def fails_once(self: Fuser, first: Any, second: Any) -> Any:
        if first.name.endswith("1.png"):
            raise ZeroDivisionError("surprise")
        return original(self, first, second)

    monkeypatch.setattr(Fuser, "fuse", fails_once)
    result = fuse(a, b, "-o", output)
    assert result.exit_code == 2
    assert "2 fused, 0 already there, 1 failed" in result.stdout
    assert "1.png: ZeroDivisionError: surprise" in result.stderr


def test_files_are_read_while_the_engine_computes(
    fuse: Any, folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, output = folders
    second_is_read = threading.Event()
    original = Fuser.fuse

    def read(path: Any) -> Any:
        if str(path) == str(b / "1.png"):
            second_is_read.set()
        return load_image(path)

    def wait(self: Fuser, first: Any, second: Any) -> Any:
        assert second_is_read.wait(20), "the second pair must be read while the first is being fused"
        return original(self, first, second)

    monkeypatch.setattr("dmfnet_fast.commands.fuse_images.load_image", read)
    monkeypatch.setattr(Fuser, "fuse", wait)
    assert "3 fused" in fuse(a, b, "-o", output).stdout


def test_12_bit_data_as_8_bit_output(fuse: Any, phantom: Phantom, pair: tuple[Path, Path], tmp_path: Path) -> None:
    write_image(tmp_path / "ct.png", phantom.ct.astype(np.uint16) * 16)
    assert fuse(pair[0], tmp_path / "ct.png", "-o", tmp_path / "x.bmp", "--range-b", 0, 4080).exit_code == 0
    assert fuse(pair[0], tmp_path / "ct.png", "-o", tmp_path / "x.png", "--range-b", 0, 4080).exit_code == 0
    assert np.abs(read_image(tmp_path / "x.bmp") - read_image(tmp_path / "x.png") / 16).max() <= 0.51


def test_float_folder_names_the_format(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    (b / "0.png").unlink()
    write_image(b / "0.tif", np.random.default_rng(0).random((64, 64), np.float32))
    assert "--format tif" in fuse(a, b, "-o", output).stderr
    assert fuse(a, b, "-o", output, "--format", "tif").exit_code == 0
    assert read_image(output / "0.tif").dtype == np.float32


def test_help_lists_the_formats_that_are_written(cli: CliRunner) -> None:
    text = " ".join(cli.invoke(main, ["--help"]).stdout.split())
    assert "Image to write (.png .tif .bmp .jpg), or a folder; for volumes a folder, or NIfTI to write" in text
    assert "[png|tif|tiff|bmp|jpg|jpeg|dicom|nifti]" in text


def test_long_and_composed_names(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    for name_a, name_b in (("n" * 250, "n" * 250), ("caf\u00e9 1", "cafe\u0301 1")):
        write_image(a / f"{name_a}.png", np.zeros((64, 64), np.uint8))
        write_image(b / f"{name_b}.png", np.zeros((64, 64), np.uint8))
    assert "5 fused" in fuse(a, b, "-o", output).stdout


def test_jpeg_folder(fuse: Any, folders: tuple[Path, Path, Path]) -> None:
    a, b, output = folders
    assert fuse(a, b, "-o", output, "--format", "jpg").exit_code == 0
    assert names(output) == [JOURNAL, "0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.png", "pet.png", "-o", "x.png"), "missing.png: no such file"),
        (("mri.png", "text.png", "-o", "x.png"), "text.png: is not an image"),
        (("mri.png", "empty.png", "-o", "x.png"), "empty.png: is empty"),
        (("mri.png", "cut.png", "-o", "x.png"), "cut.png: is truncated"),
        (("mri.png", "wide.png", "-o", "x.png"), "mri.png is 64x64, wide.png is 80x64"),
        (("small.png", "small.png", "-o", "x.png"), "is 32x32; the smallest size is 64x64"),
        (("mri.png", "pet.png", "-o", "x.xyz"), "unknown image format '.xyz'"),
        (("mri.png", "pet.png", "-o", "x"), "unknown image format ''"),
        (("mri.png", "pet.png", "-o", "nowhere/x.png"), "the folder nowhere does not exist"),
        (("mri.png", "pet.png", "-o", "mri.png"), "is one of the inputs"),
        (("mri.png", "pet.png", "-o", "results/"), "no such folder"),
        (("n" * 300, "pet.png", "-o", "x.png"), "File name too long"),
        (("mri.png", "full", "-o", "x.png"), "one is a folder and one a file"),
        (("full", "missing", "-o", "out"), "missing: no such file or folder"),
        (("empty", "empty", "-o", "out"), "hold no images"),
        (("empty", "pet.png", "-o", "out"), "one is a folder and one a file"),
        (("full", "full", "-o", "full"), "is one of the input folders"),
        (("full", "full", "-o", "mri.png"), "mri.png: is a file"),
        (("full", "full", "-o", "text.png/out"), "cannot be created"),
        (("full", "full", "-o", "out.png"), "out.png: names a file; two folders are fused into a folder"),
        (("mri.png", "pet.png", "-o", "x.png", "--range-b", "5", "5"), "two finite numbers"),
        (("infinite.tif", "pet.png", "-o", "x.png"), "infinite.tif: holds NaN or infinity"),
    ],
)
def test_bad_input(
    fuse: Any, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    folder = pair[0].parent
    monkeypatch.chdir(folder)
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(pair[1].read_bytes()[:700])
    write_image("wide.png", np.zeros((64, 80), np.uint8))
    write_image("small.png", np.zeros((32, 32), np.uint8))
    write_image("deep.png", np.zeros((64, 64), np.uint16))
    write_image("infinite.tif", np.full((64, 64), np.inf, np.float32))
    for name in ("empty", "full"):
        (folder / name).mkdir()
    write_image("full/1.png", np.zeros((64, 64), np.uint8))
    if "--range-b" in arguments:
        arguments = ("mri.png", "deep.png", *arguments[2:])
    before = sorted(folder.rglob("*"))
    result = fuse(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert sorted(folder.rglob("*")) == before, "no partial file is left"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.safetensors", "no such engine file"),
        ("corrupt.safetensors", "damaged"),
        ("gen.pth", "dmfnet-convert"),
        ("mri.png", "is an image, not an engine"),
    ],
)
def test_bad_engine(fuse: Any, pair: tuple[Path, Path], tmp_path: Path, name: str, message: str) -> None:
    for file in ("corrupt.safetensors", "gen.pth"):
        (tmp_path / file).write_bytes(b"\x08" + bytes(100))
    result = fuse(*pair, "-o", tmp_path / "x.png", engine=tmp_path / name)
    assert result.exit_code == 2
    assert message in result.stderr
    assert name in result.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write to any folder")
def test_read_only_folder(fuse: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    result = fuse(*pair, "-o", locked / "x.png")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_unwritable_folder(fuse: Any, pair: tuple[Path, Path]) -> None:
    result = fuse(*pair, "-o", "/proc/x.png")
    assert result.exit_code == 2
    assert "/proc/x.png: cannot be written" in result.stderr


def test_swapped_warns(fuse: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = fuse(pair[1], pair[0], "-o", tmp_path / "x.png")
    assert result.exit_code == 0
    assert "are they swapped" in result.stderr


def test_exif_rotation(fuse: Any, phantom: Phantom, pair: tuple[Path, Path], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(phantom.pet))).save(tmp_path / "lying.png", exif=exif)
    for name in ("lying", "pet"):
        assert fuse(pair[0], tmp_path / f"{name}.png", "-o", tmp_path / f"{name}-fused.png").exit_code == 0
    assert np.array_equal(read_image(tmp_path / "lying-fused.png"), read_image(tmp_path / "pet-fused.png"))
