"""Report tables: best means, comparisons, and escaping of labels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dmfnet_fast.evaluation.dataset import Pair
from dmfnet_fast.evaluation.report import best, cell, compared, number, title, to_json, to_markdown, to_text
from dmfnet_fast.evaluation.scores import Evaluation, Scored
from dmfnet_fast.evaluation.statistics import Comparison, Estimate
from dmfnet_fast.metrics.fusion import MEASURES


def _evaluation(scores: dict[str, list[dict[str, float | None]]]) -> Evaluation:
    """An evaluation with the given scores of each method on each pair; other scores are 1."""
    evaluation = Evaluation(dict.fromkeys(scores, "a method"), next(iter(scores)))
    for n, of_pair in enumerate(zip(*scores.values(), strict=True)):
        pair = Pair("PET-MRI", ("MRI", "PET"), str(n), Path("a"), Path("b"))
        metrics = {
            label: {m.name: given.get(m.name, 1.0) for m in MEASURES}
            for label, given in zip(scores, of_pair, strict=True)
        }
        evaluation.scored.append(Scored(pair, metrics, {}))
    return evaluation


@pytest.mark.parametrize(
    ("name", "winner"), [("MI", "high"), ("objective", "low"), ("chroma kept", "high"), ("bleached", "low")]
)
def test_best_mean_is_bold(name: str, winner: str) -> None:
    evaluation = _evaluation(
        {"low": [{name: 2.0}, {name: 3.0}], "high": [{name: 7.0}, {name: 4.0}], "middle": [{name: 4.0}, {name: 4.0}]}
    )
    (table,) = evaluation.tables()
    assert best(table)[name] == {winner}
    assert best(table)["EN"] == {"low", "high", "middle"}, "equal means are all best"
    scores = [line for line in to_markdown(evaluation, "x").splitlines() if "<br>" in line][:3]
    column = [measure.name for measure in MEASURES].index(name) + 2
    bold = {line.split("|")[1].strip(): line.split("|")[column].strip().startswith("**") for line in scores}
    assert bold == {label: label == winner for label in ("low", "high", "middle")}


def test_best_of_methods_without_scores() -> None:
    absent = dict.fromkeys(("bleached", "hue error"))
    evaluation = _evaluation({"gray": [absent], "color": [{"bleached": 9.0, "hue error": None}]})
    (table,) = evaluation.tables()
    assert best(table)["bleached"] == {"color"}
    assert "hue error" not in [measure.name for measure in table.measures], "no column without a score"
    assert "hue error" not in to_text(evaluation)
    assert json.loads(to_json(evaluation))["summary"][0]["rows"][0]["estimates"]["bleached"] is None


def test_best_of_infinite_means() -> None:
    evaluation = _evaluation(
        {"x": [{"PSNR": 30.0}, {"PSNR": 31.0}], "equal": [{"PSNR": math.inf}] * 2, "black": [{"PSNR": -math.inf}] * 2}
    )
    assert best(evaluation.tables()[0])["PSNR"] == {"equal"}
    assert " inf" in to_text(evaluation)
    record = json.loads(to_json(evaluation))
    assert record["pairs"][0]["metrics"]["equal"]["PSNR"] is None


@pytest.mark.parametrize(
    ("comparison", "text"),
    [
        (Comparison(Estimate(-0.01234, -1, 1), 20, 0, 3), "-0.0123, 20 of 23"),
        (Comparison(Estimate(0.5, 0, 1), 1, 2, 3), "+0.5000, 1 of 6, 2 equal"),
        (Comparison(Estimate(math.nan, math.nan, math.nan), 1, 0, 1), "–, 1 of 2"),
        (None, "–"),
    ],
)
def test_comparison_as_text(comparison: Comparison | None, text: str) -> None:
    assert compared(comparison) == text


def test_wins_follow_the_direction_of_the_measure() -> None:
    evaluation = _evaluation(
        {
            "base": [{"MI": 2.0, "objective": 2.0}] * 3,
            "x": [{"MI": value, "objective": value} for value in (1.0, 4.0, 6.0)],
        }
    )
    against = evaluation.tables()[0].rows[1].against
    assert against is not None
    for name, wins, losses in (("MI", 2, 1), ("objective", 1, 2)):
        found = against[name]
        assert found is not None
        assert (found.wins, found.ties, found.losses) == (wins, 0, losses)
        assert compared(found) == f"+1.6667, {wins} of 3"


def test_labels_are_escaped() -> None:
    label = "a|b\\|c <i>&amp;"
    text = to_markdown(_evaluation({label: [{}], "x": [{}]}), "x")
    (row,) = (line for line in text.splitlines() if line.startswith("| a"))
    assert row.startswith(r"| a\|b\\\|c &lt;i>&amp;amp; | ")
    assert cell("plain_text") == "plain_text"


def test_titles_show_which_direction_is_better() -> None:
    assert [title(m) for m in MEASURES if m.name in ("MI", "invented")] == ["MI ↑", "invented ↓"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.6649, "12.66"),
        (-0.12349, "-0.1235"),
        (-0.0, "0"),
        (7e-16, "0"),
        (0.28437, "0.2844"),
        (math.inf, "inf"),
        (None, "–"),
    ],
)
def test_numbers_are_rounded(value: float | None, text: str) -> None:
    assert number(value) == text
