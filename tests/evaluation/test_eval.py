"""`dmfnet-eval` from end to end, on made-up heads."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dmfnet_fast import Fuser
from dmfnet_fast.commands.eval import main
from dmfnet_fast.commands.phantom import write_phantoms
from dmfnet_fast.errors import PictureError
from dmfnet_fast.evaluation.dataset import Pair, find_pairs
from dmfnet_fast.evaluation.methods import AsJPEG, Folder, Trivial, opened, parse_engine
from dmfnet_fast.evaluation.page import disputed
from dmfnet_fast.evaluation.report import number
from dmfnet_fast.metrics import METRICS, fusion_metrics
from dmfnet_fast.pictures import write_picture

MODALITIES = ("CT", "PET", "SPECT")


def _run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--workers", "1"])


def _grey(path: Path | Image.Image) -> np.ndarray:
    return np.asarray((path if isinstance(path, Image.Image) else Image.open(path)).convert("L"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    list(write_phantoms(folder, train=1, test=3, size=64))
    return folder


@pytest.fixture(scope="module")
def theirs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's results: the MRI, as JPEG."""
    folder = tmp_path_factory.mktemp("theirs & co")
    for modality in MODALITIES:
        (folder / f"{modality}-MRI").mkdir()
        for path in (data / "test" / f"{modality}-MRI" / "MRI").iterdir():
            Image.open(path).convert("RGB").save(folder / f"{modality}-MRI" / f"{path.stem}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def report(data: Path, theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    engines = ("--engine", "tiny@float32", "--engine", "same=tiny@float32")
    result = _run("--data", data, *engines, "--fused", f"<b>={theirs}", "--jpeg", 95, "--pictures", 2, "-o", out)
    assert result.exit_code == 0, result.output
    assert "SPECT-MRI, 3 pairs" in result.stdout
    assert result.stdout.splitlines()[-3:] == [str(out / f"report.{kind}") for kind in ("md", "json", "html")]
    return out


@pytest.fixture(scope="module")
def record(report: Path) -> Any:
    return json.loads((report / "report.json").read_text())


def test_scores_are_those_of_the_saved_pictures(record: Any, data: Path, theirs: Path, tmp_path: Path) -> None:
    assert len(record["pairs"]) == 9
    with Fuser("tiny", precision="float32") as fuser:
        for pair in record["pairs"]:
            folder, name = data / "test" / f"{pair['modality']}-MRI", pair["name"]
            a, b = folder / "MRI" / f"{name}.png", folder / pair["modality"] / f"{name}.png"
            fuser.fuse(a, b).save(tmp_path / "fused.png")
            fused = {
                "tiny float32": tmp_path / "fused.png",
                "<b>": theirs / f"{pair['modality']}-MRI" / f"{name}.jpg",
            }
            for label, path in fused.items():
                assert pair["metrics"][label] == pytest.approx(fusion_metrics(_grey(path), _grey(a), _grey(b)))


def test_rows(record: Any) -> None:
    assert record["baseline"] == "<b>"
    assert list(record["methods"]) == [
        "tiny float32", "tiny float32, JPEG 95", "same", "same, JPEG 95", "<b>", "maximum", "maximum, JPEG 95",
        "average", "average, JPEG 95",
    ]  # fmt: skip
    assert "precision float32" in record["methods"]["same"]
    for table in record["summary"]:
        rows = {row["label"]: row for row in table["rows"]}
        assert rows["same"]["estimates"] == rows["tiny float32"]["estimates"]
        assert rows["<b>"]["against"] is None
        assert rows["tiny float32"]["milliseconds"] > 0
        assert rows["maximum"]["milliseconds"] is None
        of_pairs = [p for p in record["pairs"] if p["modality"] == table["modality"]]
        for metric in METRICS:
            values = [p["metrics"]["same"][metric.name] for p in of_pairs]
            estimate = rows["same"]["estimates"][metric.name]
            assert estimate["mean"] == pytest.approx(np.mean(values))
            assert min(values) - 1e-9 <= estimate["low"] <= estimate["mean"] <= estimate["high"] <= max(values) + 1e-9
            gains = [p["metrics"]["same"][metric.name] - p["metrics"]["<b>"][metric.name] for p in of_pairs]
            sign = 1 if metric.better == "more" else -1
            assert rows["same"]["against"][metric.name]["wins"] == sum(sign * gain > 0 for gain in gains)


def test_markdown(report: Path, record: Any) -> None:
    text = (report / "report.md").read_text()
    assert text.startswith("# Fusion of ")
    rows = [line for line in text.splitlines() if line.startswith("| same |")]
    assert len(rows) == 6, "scores and comparison in three modalities"
    assert {line.count("|") for line in rows} == {len(METRICS) + 2, len(METRICS) + 3}
    mean = record["summary"][0]["rows"][0]["estimates"]["objective"]["mean"]
    assert f"| {mean:.4g}<br>" in rows[0]


class _Page(HTMLParser):
    """Checks that tags are closed, and collects pictures and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(dict(attributes)["src"] or "")
        if tag not in ("img", "br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page(report: Path) -> None:
    content = (report / "report.html").read_text()
    page = _Page()
    page.feed(re.sub(r"<(circle|rect|line)([^>]*)/>", r"<\1\2></\1>", content))
    assert not page.open
    assert "<b>" in page.text, "labels are escaped"
    assert "http" not in content.replace("http-equiv", ""), "nothing is fetched"
    # Of each modality two pairs: two sources, and nine methods whole, enlarged and as differences.
    assert len(page.sources) == 3 * 2 * (2 * 2 + 9 * 3)
    for source in page.sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size[0] == 64


def test_a_pair_that_cannot_be_fused_is_left_out_for_all(data: Path, theirs: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(theirs, few)
    first, second, third = sorted((few / "CT-MRI").iterdir())
    first.write_bytes(b"no picture")
    Image.new("L", (80, 64)).save(second)
    result = _run("--data", data, "--fused", few, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"error: CT-MRI {first.stem}, few: {first}: is not a picture" in result.stderr
    assert f"{second}: is 80x64, the pair is 64x64" in result.stderr
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(p["modality"], p["name"]) for p in record["pairs"] if p["modality"] == "CT"] == [("CT", third.stem)]
    assert len(record["pairs"]) == 7
    assert len(record["problems"]) == 2
    assert "Left out, for all methods" in (tmp_path / "out" / "report.md").read_text()


def test_several_workers_give_the_same(data: Path, record: Any, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["--data", str(data), "--limit", "1", "--pictures", "0", "--workers", "2", "-o", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    for pair in json.loads((tmp_path / "report.json").read_text())["pairs"]:
        (same,) = (p for p in record["pairs"] if (p["modality"], p["name"]) == (pair["modality"], pair["name"]))
        assert pair["metrics"] == {label: same["metrics"][label] for label in ("maximum", "average")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere"), "nowhere/test: holds no pairs"),
        (("--data", "DATA", "--fused", "nowhere"), "nowhere: no such folder"),
        (("--data", "DATA", "--engine", "turbot"), "turbot: no such engine file, and no shipped network (tiny"),
        (("--data", "DATA", "--engine", "tiny", "--engine", "tiny"), "two methods are called tiny: give each a name"),
        (
            ("--data", "DATA", "--fused", "maximum, JPEG 9=DATA", "--jpeg", "9"),
            "two methods are called maximum, JPEG 9:",
        ),
        (("--data", "DATA", "--baseline", "they"), "--baseline they: is none of maximum, average"),
        (("--data", "DATA", "--no-trivial"), "nothing to evaluate"),
        (("--data", "DATA", "--split", "../test"), None),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str | None, data: Path, tmp_path: Path) -> None:
    given = [argument.replace("DATA", str(data)) for argument in arguments]
    result = _run(*given, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message is None or message in result.stderr
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiny", ("tiny", "tiny", "auto")),
        ("tiny@float32", ("tiny float32", "tiny", "float32")),
        ("ours=runs/x.onnx@bfloat16", ("ours", "runs/x.onnx", "bfloat16")),
        ("me@home/x.onnx", ("x", "me@home/x.onnx", "auto")),
    ],
)
def test_engines_are_named(text: str, expected: tuple[str, str, str]) -> None:
    assert parse_engine(text) == expected


@pytest.fixture
def pair(data: Path) -> Pair:
    return find_pairs(data, "test")[0][0]


@pytest.mark.parametrize(
    ("name", "depth"), [("001.png", np.uint8), ("001.tif", np.uint16), ("001.tif", np.float32), ("001.jpg", np.uint8)]
)
def test_fused_elsewhere_in_any_depth(name: str, depth: Any, pair: Pair, tmp_path: Path) -> None:
    """Other depths have their own range, not b's."""
    picture = pair.greys[0]
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[depth]
    (tmp_path / "CT-MRI").mkdir()
    write_picture(tmp_path / "CT-MRI" / name, (picture * np.float64(scale)).astype(depth))
    fused = Folder("x", tmp_path).fuse(pair)
    assert np.abs(fused.astype(int) - picture).max() <= (8 if name.endswith("jpg") else 0)


def test_sources_that_cannot_be_scored(data: Path, tmp_path: Path) -> None:
    """Of them the pair is to blame, not a method."""
    for kind in ("MRI", "CT"):
        (tmp_path / "test" / "CT-MRI" / kind).mkdir(parents=True)
        write_picture(tmp_path / "test" / "CT-MRI" / kind / "1.png", np.zeros((64, 46), np.uint8))
    shutil.copytree(data / "test" / "PET-MRI", tmp_path / "test" / "PET-MRI")
    (tmp_path / "test" / "PET-MRI" / "PET" / "001.png").write_bytes(b"no picture")
    result = _run("--data", tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert re.search(r"error: CT-MRI 1: \S*MRI/1\.png: is too small for the metrics, which take 47x47", result.stderr)
    assert re.search(r"error: PET-MRI 001: \S*PET/001\.png: is not a picture", result.stderr)
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["pairs"]) == 2


def test_which_file_is_whose(pair: Pair, tmp_path: Path) -> None:
    """Dots are part of names, accents may be decomposed; two files of a name, or another modality's, are not taken."""
    (tmp_path / "CT-MRI").mkdir()
    for name in ("1.png", "1.5.png", unicodedata.normalize("NFD", "é.png")):
        write_picture(tmp_path / "CT-MRI" / name, np.full((64, 64), len(name), np.uint8))
    folder = Folder("x", tmp_path)
    for name, value in (("1", 5), ("1.5", 7), ("é", 6)):
        assert (folder.fuse(replace(pair, name=name)) == value).all()
    with pytest.raises(PictureError, match=r"PET-MRI/1\.\*: no such picture"):
        folder.fuse(replace(pair, modality="PET", name="1"))
    write_picture(tmp_path / "CT-MRI" / "1.bmp", np.zeros((64, 64), np.uint8))
    with pytest.raises(PictureError, match=r"1\.bmp: 1\.png has the same name; keep one of them"):
        Folder("x", tmp_path).fuse(replace(pair, name="1"))


def test_a_folder_may_have_an_equals_sign(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1e-3"
    folder.mkdir()
    with opened([], [str(folder), f"rate={folder}"], False, None, None) as methods:
        assert [method.label for method in methods] == ["lr=1e-3", "rate"]


@pytest.mark.parametrize(
    ("value", "text"), [(12.6649, "12.66"), (-0.12349, "-0.1235"), (-0.0, "0"), (0.28437, "0.2844")]
)
def test_numbers_are_rounded(value: float, text: str) -> None:
    assert number(value) == text


def test_jpeg_changes_a_picture_a_little() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    after = AsJPEG(Trivial("maximum"), 95).compress(picture)
    assert 0 < np.abs(after.astype(int) - picture).mean() < 12


def test_the_disputed_part() -> None:
    first = np.zeros((256, 200), np.uint8)
    second = first.copy()
    second[100:120, 150:180] = 9
    rows, columns = disputed([first, second])
    assert (rows.stop - rows.start, columns.stop - columns.start) == (64, 64)
    assert rows.start <= 100 < 120 <= rows.stop
    assert columns.start <= 150 < 180 <= columns.stop
