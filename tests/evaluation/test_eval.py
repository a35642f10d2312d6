"""`dmfnet-eval` from end to end, on phantoms."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dmfnet_fast import Fuser
from dmfnet_fast.commands.eval import main
from dmfnet_fast.images.io import read_image, write_image
from dmfnet_fast.metrics.fusion import COLOR_MEASURES, MEASURES, METRICS, color_measures, fusion_metrics
from tests.evaluation.running import run


def _gray(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def test_scores_are_those_of_the_saved_images(record: Any, data: Path, theirs: Path, tmp_path: Path) -> None:
    assert len(record["pairs"]) == 9
    with Fuser("nano", precision="float32") as fuser:
        for pair in record["pairs"]:
            folder, name = data / "test" / pair["modality"], pair["name"]
            kind, _ = pair["modality"].split("-")
            a, b = folder / "MRI" / f"{name}.png", folder / kind / f"{name}.png"
            fuser.fuse(a, b).save(tmp_path / "fused.png")
            fused = {
                "nano float32": tmp_path / "fused.png",
                "<b>|": theirs / pair["modality"] / f"{name}.jpg",
            }
            for label, path in fused.items():
                expected = {
                    **fusion_metrics(_gray(path), _gray(a), _gray(b)),
                    **color_measures(np.asarray(Image.open(path).convert("RGB")), read_image(b)),
                }
                assert pair["metrics"][label] == pytest.approx(expected)


def test_rows(record: Any) -> None:
    assert record["baseline"] == "<b>|"
    assert list(record["methods"]) == [
        "nano float32", "nano float32, JPEG 95", "same", "same, JPEG 95", "<b>|", "maximum", "maximum, JPEG 95",
        "average", "average, JPEG 95",
    ]  # fmt: skip
    assert "precision float32" in record["methods"]["same"]
    for table in record["summary"]:
        rows = {row["label"]: row for row in table["rows"]}
        assert rows["same"]["estimates"] == rows["nano float32"]["estimates"]
        assert rows["<b>|"]["against"] is None
        assert rows["nano float32"]["milliseconds"] > 0
        assert rows["maximum"]["milliseconds"] is None
        of_pairs = [p for p in record["pairs"] if p["modality"] == table["modality"]]
        gray = table["modality"] == "CT-MRI"
        for measure in MEASURES:
            name = measure.name
            ours, baseline = ([p["metrics"][label][name] for p in of_pairs] for label in ("same", "<b>|"))
            estimate, against = rows["same"]["estimates"][name], rows["same"]["against"][name]
            if gray and measure in COLOR_MEASURES:
                assert ours == [None] * 3
                assert estimate is against is None
                continue
            assert estimate["mean"] == pytest.approx(np.mean(ours))
            assert min(ours) - 1e-9 <= estimate["low"] <= estimate["mean"] <= estimate["high"] <= max(ours) + 1e-9
            if name == "hue error":
                assert baseline == [None] * 3, "a gray image has no hue"
                assert against is None
                continue
            sign = 1 if measure.better == "more" else -1
            assert against["wins"] == sum(sign * (x - y) > 0 for x, y in zip(ours, baseline, strict=True))
            assert against["difference"]["mean"] == pytest.approx(np.mean(ours) - np.mean(baseline))


def test_markdown(report: Path, record: Any) -> None:
    text = (report / "report.md").read_text()
    assert text.startswith("# Fusion of ")
    rows = [line for line in text.splitlines() if line.startswith("| same |")]
    assert len(rows) == 6, "scores and a comparison for each of three modalities"
    of_gray, of_color = len(METRICS), len(MEASURES)
    assert [line.count("|") for line in rows] == [of_gray + 3, of_gray + 2, *[of_color + 3, of_color + 2] * 2]
    theirs = [line for line in text.splitlines() if line.startswith(r"| &lt;b>\| |")]
    assert [line.count("|") for line in theirs] == [of_gray + 4, of_color + 4, of_color + 4], "the bar is escaped"
    mean = record["summary"][0]["rows"][0]["estimates"]["objective"]["mean"]
    assert re.search(rf"\| (\*\*)?{mean:.4g}(\*\*)?<br>", rows[0])
    assert not re.search(r"\bnan\b", text)


def test_pair_that_cannot_be_fused_is_excluded_for_all(data: Path, theirs: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(theirs, few)
    first, second, third = sorted((few / "CT-MRI").iterdir())
    first.write_bytes(b"no image")
    Image.new("L", (80, 64)).save(second)
    result = run("--data", data, "--fused", few, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"error: CT-MRI {first.stem}, few: {first}: is not an image" in result.stderr
    assert f"{second}: is 80x64, the pair is 64x64" in result.stderr
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(p["modality"], p["name"]) for p in record["pairs"] if p["modality"] == "CT-MRI"] == [
        ("CT-MRI", third.stem)
    ]
    assert len(record["pairs"]) == 7
    assert len(record["problems"]) == 2
    assert "Pairs excluded for all methods" in (tmp_path / "out" / "report.md").read_text()


def test_no_pair_that_all_can_fuse(data: Path, theirs: Path, tmp_path: Path) -> None:
    shutil.copytree(theirs, tmp_path / "bad")
    for path in (tmp_path / "bad").rglob("*.jpg"):
        path.write_bytes(b"no image")
    result = run("--data", data, "--fused", tmp_path / "bad", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: no pair could be fused by all methods: CT-MRI ")
    assert not list((tmp_path / "out").iterdir())


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
        (("--data", "nowhere"), "nowhere/test: no such folder; --split names another one of nowhere"),
        (("--data", "DATA", "--fused", "nowhere"), "nowhere: no such folder"),
        (("--data", "DATA", "--engine", "turbot"), "turbot: no such engine file, and no shipped network (nano"),
        (("--data", "DATA", "--engine", "nano", "--engine", "nano"), "two methods are called nano: give each a label"),
        (
            ("--data", "DATA", "--fused", "maximum, JPEG 9=DATA", "--jpeg", "9"),
            "two methods are called maximum, JPEG 9:",
        ),
        (("--data", "DATA", "--baseline", "they"), "--baseline they: must be one of maximum, average"),
        (("--data", "DATA", "--no-trivial"), "nothing to evaluate"),
        (("--data", "DATA", "--split", "test/PET-MRI"), "test/PET-MRI: holds no pairs; pairs are in folders named B-A"),
        (("--data", "DATA", "--modality", "MR-MR"), "holds no MR-MR; there is CT-MRI, PET-MRI, SPECT-MRI"),
        (("--data", "DATA", "--range-a", "3", "3"), "--range-a: range (3, 3) must be two finite numbers"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str, data: Path, tmp_path: Path) -> None:
    given = [argument.replace("DATA", str(data)) for argument in arguments]
    result = run(*given, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not list(tmp_path.glob("out/*"))


def test_sources_that_cannot_be_scored(data: Path, tmp_path: Path) -> None:
    """The error names the pair and not a method."""
    for kind in ("MRI", "CT"):
        (tmp_path / "test" / "CT-MRI" / kind).mkdir(parents=True)
        write_image(tmp_path / "test" / "CT-MRI" / kind / "1.png", np.zeros((64, 46), np.uint8))
    shutil.copytree(data / "test" / "PET-MRI", tmp_path / "test" / "PET-MRI")
    (tmp_path / "test" / "PET-MRI" / "PET" / "001.png").write_bytes(b"no image")
    result = run("--data", tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert re.search(
        r"error: CT-MRI 1: \S*MRI/1\.png: is too small for the metrics; give images of 47x47", result.stderr
    )
    assert re.search(r"error: PET-MRI 001: \S*PET/001\.png: is not an image", result.stderr)
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["pairs"]) == 2


def test_progress_in_a_file(data: Path, tmp_path: Path) -> None:
    result = run("--data", data, "--limit", 1, "--pictures", 1, "--modality", "PET", "-o", tmp_path)
    assert result.stderr.splitlines() == [
        "fusing and scoring: 0 of 1", "fusing and scoring: 1 of 1", "drawing the page: 0 of 1",
        "drawing the page: 1 of 1",
    ]  # fmt: skip


def test_selected_modalities(data: Path, tmp_path: Path) -> None:
    for names, expected in (
        (["PET"], ["PET-MRI"]),
        (["SPECT-MRI", "CT"], ["CT-MRI", "SPECT-MRI"]),
    ):
        chosen = [part for name in names for part in ("--modality", name)]
        assert run("--data", data, *chosen, "--limit", 1, "--pictures", 0, "-o", tmp_path).exit_code == 0
        record = json.loads((tmp_path / "report.json").read_text())
        assert [table["modality"] for table in record["summary"]] == expected


def test_deep_images_and_their_range(tmp_path: Path) -> None:
    """12-bit CT: scores use the stated range, and no range is inferred."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (64, 64), np.uint8), rng.integers(0, 3000, (64, 64), np.uint16)
    for kind, image in (("MRI", a), ("CT", b)):
        (tmp_path / "CT-MRI" / kind).mkdir(parents=True)
        write_image(tmp_path / "CT-MRI" / kind / "1.png", image)
    given = ("--data", tmp_path, "--split", ".", "-o", tmp_path / "out")
    result = run(*given, "--range-b", 1000, 2000)
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr
    (pair,) = json.loads((tmp_path / "out" / "report.json").read_text())["pairs"]
    clipped = np.rint((b.clip(1000, 2000) - 1000.0) * 255 / 1000).astype(np.uint8)
    expected = fusion_metrics(np.maximum(a, clipped), a, clipped)
    assert pair["metrics"]["maximum"]["SD"] == pytest.approx(expected["SD"], abs=0.05)
    guessed = run(*given).stderr
    assert "0..4095 is assumed as its range; state the range with " in guessed
    assert guessed.count("its largest value is") == 1, (
        "the warning appears once, although the page reads the pair again"
    )
    assert (
        "MRI/1.png: is 8-bit, which always spans 0..255: its range is not used"
        in run(*given, "--range-a", 0, 100).stderr
    )


def test_files_of_others_are_not_replaced(data: Path, tmp_path: Path) -> None:
    given = ("--data", data, "--limit", 1, "--pictures", 0, "-o", tmp_path)
    assert run(*given).exit_code == 0
    assert run(*given).exit_code == 0, "own reports are replaced"
    for kind in ("md", "json", "html"):
        path = tmp_path / f"report.{kind}"
        ours = path.read_text()
        path.write_text("made by me; I like dmfnet-eval")
        result = run(*given)
        assert result.exit_code == 2
        assert result.stderr == (
            f"error: {path}: already exists and was not made by dmfnet-eval; move it away, or choose another folder "
            "with --output\n"
        )
        assert path.read_text() == "made by me; I like dmfnet-eval"
        path.write_text(ours)
