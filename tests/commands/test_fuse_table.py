"""`dmfnet-fuse --pairs`: a table of pairs, without Ray."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dmfnet_fast import Fuser, __version__
from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.commands.fuse import main
from dmfnet_fast.commands.fuse_on_ray import IMAGES_AT_ONCE, RayWorker, _chunks, room_for
from dmfnet_fast.commands.fuse_table import REPORT, read_table
from dmfnet_fast.commands.fuse_worker import MOST_ATTEMPTS, Pair, TableRequest, Worker
from dmfnet_fast.commands.journal import JOURNAL
from dmfnet_fast.errors import ImageError
from dmfnet_fast.images.io import read_image, write_image
from dmfnet_fast.phantom import make_phantom

Fuse = Callable[..., Result]


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows that may lack cells."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_images(folder: Path, count: int, size: int = 64) -> list[dict[str, str]]:
    """Pairs of an MRI and a PET, and their rows with paths relative to the folder."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        head = make_phantom(number, size)
        write_image(folder / f"mri{number}.png", head.mri)
        write_image(folder / f"pet{number}.png", head.pet)
        rows.append({"a": f"mri{number}.png", "b": f"pet{number}.png"})
    return rows


@pytest.fixture
def fuse(cli: CliRunner) -> Fuse:
    def invoke(*arguments: Any) -> Result:
        result = cli.invoke(main, [*map(str, arguments), "--precision", "float32"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


def test_images(fuse: Fuse, tmp_path: Path) -> None:
    """Bad pairs fail alone; what is done is kept, and what has changed is fused again."""
    rows = write_images(tmp_path / "in", 4)
    (tmp_path / "in" / "pet2.png").write_bytes(b"no image")
    rows[1]["name"] = "second"
    table = write_table(tmp_path / "in" / "pairs.csv", [*rows, {"a": "none.png", "b": "pet0.png", "name": "lost"}])
    out = tmp_path / "out"
    result = fuse("--pairs", table, "-o", out, "--montage")
    assert result.exit_code == 2
    assert f"{out}: 3 fused, 0 already there, 2 failed" in result.stdout
    assert "pet2.png: is not an image" in result.stderr
    assert "none.png: no such file or folder" in result.stderr
    names = ["pet0.png", "pet3.png", "second.png"]
    assert sorted(path.name for path in out.glob("*.png")) == names
    assert sorted(path.name for path in (out / "montages").iterdir()) == names
    with Fuser(precision="float32") as fuser:
        wanted = fuser.fuse(tmp_path / "in" / "mri1.png", tmp_path / "in" / "pet1.png")
    np.testing.assert_array_equal(read_image(out / "second.png"), np.asarray(wanted))
    with (out / REPORT).open(newline="") as file:
        reported = [(row["name"], row["status"]) for row in csv.DictReader(file)]
    assert reported == [
        ("pet0", "fused"),
        ("second", "fused"),
        ("pet2", "failed"),
        ("pet3", "fused"),
        ("lost", "failed"),
    ]
    write_image(tmp_path / "in" / "pet0.png", make_phantom(9, 64).pet)
    again = json.loads(fuse("--pairs", table, "-o", out, "--montage", "--json").stdout)
    assert (again["fused"], again["skipped"], again["failed"]) == (1, 2, 2)
    assert [pair["status"] for pair in again["pairs"]] == ["fused", "skipped", "failed", "skipped", "failed"]


def test_foreign_files(fuse: Fuse, tmp_path: Path) -> None:
    table = write_table(tmp_path / "in.csv", [dict.fromkeys("ab", "x.png")])
    write_image(tmp_path / "x.png", make_phantom(0, 64).mri)
    out = tmp_path / "out"
    out.mkdir()
    (out / "x.png").write_bytes(b"precious")
    result = fuse("--pairs", table, "-o", out)
    assert "was not made by this command" in result.stderr
    assert (out / "x.png").read_bytes() == b"precious"
    result = fuse("--pairs", table, "-o", tmp_path)
    assert result.exit_code == 2
    assert "x.png, which is an input; choose another folder" in result.stderr


def test_volumes(fuse: Fuse, tmp_path: Path) -> None:
    """DICOM and NIfTI in one table with images; a finished study is not even read again."""
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    from dmfnet_fast.volumes.phantom import make_head, write_head, write_nifti

    head = make_head(seed=1, size=48)
    write_head(head, tmp_path / "head")
    write_nifti(head.mr, tmp_path / "MR.nii.gz")
    write_nifti(head.pet, tmp_path / "PT.nii.gz")
    rows = [
        {"a": "head/MR", "b": "head/PT", "name": "study"},
        {"a": "MR.nii.gz", "b": "PT.nii.gz", "modality_b": "PET"},
        {"a": "head/MR", "b": "head/CT", "series_b": "1.2.3"},
        *({"a": f"in/{row['a']}", "b": f"in/{row['b']}"} for row in write_images(tmp_path / "in", 1)),
    ]
    out, table = tmp_path / "out", write_table(tmp_path / "pairs.csv", rows)
    report = json.loads(fuse("--pairs", table, "-o", out, "--json").stdout)
    assert [pair["status"] for pair in report["pairs"]] == ["fused", "fused", "failed", "fused"]
    assert "1.2.3" in report["pairs"][2]["error"]
    assert (out / "PT" / "fused.nii.gz").is_file()
    pages = {path: path.stat().st_mtime_ns for path in out.rglob("report.json")}
    assert len(pages) == 2
    slices = sorted((out / "study" / "fused").glob("*.dcm"))
    slices[3].unlink()  # alone makes its study unfinished
    again = fuse("--pairs", table, "-o", out)
    assert "1 fused, 2 already there, 1 failed" in again.stdout
    assert slices[3].is_file()
    assert {path.parent.name for path in pages if path.stat().st_mtime_ns != pages[path]} == {"study"}


def request_for(output: Path) -> TableRequest:
    output.mkdir()
    given = dict.fromkeys(
        ("range_a", "range_b", "chosen_format", "series_a", "series_b", "modality_b", "grid", "colormap", "label")
    ) | dict.fromkeys(("with_montage", "overwrite", "register", "force_patient"), False)
    engine = EngineOptions("nano", None, "float32", 1, 0, 0.75, False)
    return TableRequest(Path("unused"), output, engine, given)


def test_a_pair_that_ends_its_process(tmp_path: Path) -> None:
    """A worker in the place of one that ended goes on; a pair that ended three is given up, and the others are done."""
    rows = write_images(tmp_path / "in", 3)
    folder = tmp_path / "in"
    pairs = [Pair(str(folder / row["a"]), str(folder / row["b"]), row["b"][:4]) for row in rows]
    request = request_for(tmp_path / "out")
    first = Worker(request, "1", "run")
    assert [job.status for _, job in first.fuse(pairs[:1])] == ["fused"]
    for _ in range(MOST_ATTEMPTS):
        first._journal.mark("begun", pairs[1].name, "run")
        first._journal.mark("begun", pairs[2].name, "another run")
    first.close()
    second = Worker(request, "2", "run")
    outcomes = dict(second.fuse(pairs))
    assert [outcomes[pair.name].status for pair in pairs] == ["skipped", "failed", "fused"]
    assert "ended the process that fused them 3 times" in str(outcomes["pet1"].error)
    second.close()
    files = sorted(path.name for path in request.output.glob(".*"))
    assert files == [JOURNAL.replace(".jsonl", f"-{part}.jsonl") for part in "12"]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    rows = write_images(tmp_path / "in", 2)
    folder = tmp_path / "in"
    pairs = [Pair(str(folder / row["a"]), str(folder / row["b"]), row["b"][:4]) for row in rows]
    request = request_for(tmp_path / "out")
    for pair in (pairs[0], pairs[1]):
        worker = Worker(request)
        assert [job.status for _, job in worker.fuse([pair])] == ["fused"]
        worker.close()
        with (request.output / JOURNAL).open("a") as journal:
            journal.write('{"output": "cut o')
    worker = Worker(request)
    assert [job.status for _, job in worker.fuse(pairs)] == ["skipped", "skipped"]
    worker.close()


def test_a_worker_of_a_cluster(tmp_path: Path) -> None:
    """Rows of text in and out, with warnings and failures; what keeps it from fusing is a row as well."""
    (row,) = write_images(tmp_path / "in", 1)
    good = {"a": str(tmp_path / "in" / row["a"]), "b": str(tmp_path / "in" / row["b"]), "name": "good"}
    gray = {"a": good["b"], "b": good["a"], "name": "swapped"}
    text = json.dumps([good, gray, {"a": "none", "b": "none", "name": "none"}])
    request = request_for(tmp_path / "out")
    (answer,) = RayWorker(request, __version__, "run")({"pairs": [text]})["done"]
    outcome = json.loads(answer)
    assert outcome["problem"] == ""
    assert {name: job["status"] for name, job in outcome["jobs"]} == {
        "good": "fused",
        "swapped": "fused",
        "none": "failed",
    }
    (warning,) = outcome["warnings"]
    assert "are they swapped?" in warning
    engine = replace(request.engine, engine="none.onnx")
    for worker, problem in (
        (RayWorker(request, "0.0.1", "run"), f"has dmfnet-fast {__version__}, and the command is 0.0.1"),
        (RayWorker(replace(request, engine=engine), __version__, "run"), "none.onnx"),
    ):
        (answer,) = worker({"pairs": [text]})["done"]
        assert problem in json.loads(answer)["problem"]


def test_chunks() -> None:
    """Volumes go one by one, images a few at a time, so that every worker gets several."""
    images = [Pair("a.png", f"{number}.png", str(number)) for number in range(100)]
    volumes = [Pair("MR", f"study{number}", f"study{number}") for number in range(3)]
    chunks = _chunks([*images, *volumes], workers=4)
    assert chunks[:3] == [[pair] for pair in volumes]
    assert [pair for chunk in chunks[3:] for pair in chunk] == images
    assert {len(chunk) for chunk in chunks[3:]} == {6, 4}
    assert len(_chunks(images * 100, workers=4)[0]) == IMAGES_AT_ONCE


def test_without_ray(fuse: Fuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    table = write_table(tmp_path / "in" / "pairs.csv", write_images(tmp_path / "in", 1))
    result = fuse("--pairs", table, "-o", tmp_path / "out", "--ray")
    assert result.exit_code == 2
    assert "error: ray is not installed: pip install 'dmfnet-fast[ray]'" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n", "has no rows"),
        ("a,c\nx,y\n", "has no column `b`"),
        ("a,b,nmae\nx,y,z\n", "has a column `nmae`; known are a, b, name, series_a, series_b and modality_b"),
        ("a,b\nx\n", "row 2: has more or fewer cells than the first line"),
        ("a,b\nx,y,z\n", "row 2: has more or fewer cells than the first line"),
        ("a,b\nx,y\n,y\n", "row 3: `a` is empty"),
        ("a,b\nx,1/PT\nx,y\nx,2/pt\n", "rows 2 and 4: both results would be named pt"),
        ("a,b,name\nx,y,P\nx,y,z\nx,y,p.png\n", "rows 2 and 4: an image named P becomes P.png, which is the name of"),
        ("a,b,name\nx,y,p.png\nx,y,p\n", "rows 2 and 3: an image named p becomes p.png, which is the name of"),
        ("a,b,name\nx,y,P.nii.gz\nx,y,p.nii\n", "rows 2 and 3: p.nii and P.nii.gz would have one report"),
        ("a,b,name\nx,y,../z\n", "row 2: '../z' is no name for a result"),
        ("a,b,name\nx,y,montages\n", "row 2: 'montages' is no name for a result"),
        (b"a,b\n\xff,y\n", "is no table"),
    ],
)
def test_unusable_tables(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ImageError, match=r"pairs\.csv") as caught:
        read_table(path)
    assert message in str(caught.value)


def test_names(tmp_path: Path) -> None:
    """Results are named as B; a byte order mark, as spreadsheets write it, is none of the first column."""
    (tmp_path / "study.1").mkdir()
    path = tmp_path / "pairs.csv"
    path.write_text("\ufeffa,b\nx,pet.v2.nii.gz\nx,study.1\nx,pet.png\n", encoding="utf-8")
    assert [pair.name for pair in read_table(path)] == ["pet.v2", "study.1", "pet"]
    assert read_table(path, "tif")
    with pytest.raises(ImageError, match=r"an image named pet becomes pet\.v2"):
        read_table(path, "v2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give A and B, two images, folders or volumes; or --pairs with a table of them"),
        (["a.png", "b.png", "--ray"], "--ray: is for a table of pairs, --pairs"),
        (["a.png", "--pairs", "x.csv"], "--pairs: names A and B"),
        (["--pairs", "x.csv", "--series-a", "1.2"], "--series-a: is a column series_a of the table"),
        (["--pairs", "none.csv"], "none.csv: cannot be read: No such file or directory"),
    ],
)
def test_refusals(fuse: Fuse, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = fuse(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr
    assert not list(tmp_path.iterdir())


def test_workers_are_not_spread_over_machines() -> None:
    machines = [{"CPU": 0.0}, {"CPU": 2.0}, {"CPU": 7.0, "GPU": 2.0}, {}]
    assert [room_for(machines, threads, False) for threads in (1, 2, 3, 8)] == [9, 4, 2, 0]
    assert [room_for(machines, threads, True) for threads in (1, 4, 8)] == [2, 1, 0]


def test_ray_chooses_the_gpu(tmp_path: Path, cli: CliRunner) -> None:
    table = write_table(tmp_path / "pairs.csv", write_images(tmp_path, 1))
    result = cli.invoke(main, ["--pairs", str(table), "-o", str(tmp_path / "out"), "--ray", "--device", "cuda:1"])
    assert result.exit_code == 2
    assert "--device cuda:1: Ray chooses the GPU of each worker; use --device cuda" in result.stderr
