"""An evaluation as JSON, as Markdown, and in a terminal."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from dmfnet_fast.evaluation.report_files import MARKS
from dmfnet_fast.evaluation.scores import Evaluation, Row, Table
from dmfnet_fast.evaluation.statistics import Comparison
from dmfnet_fast.metrics.fusion import MEASURES, Measure

NOTE = (
    "Means over pairs; below them 95 % bootstrap intervals. Scored is the 8-bit image: its luminance, and where b is "
    "in color, its colors. Arrows say which direction is taken for better. EN, SD, SF and AG do not look at the "
    "sources, and noise raises them."
)
COMPARED = "Mean difference, and number of pairs that are better, compared pair by pair with"
ABSENT = "–"  # of a score that there is not


def _finite(value: Any) -> Any:
    """Numbers that JSON does not know become None."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(evaluation: Evaluation, **more: Any) -> str:
    """All of it: summaries, and every pair's scores.

    A score is null where there is none (color measures of gray pairs), and where it is infinite (PSNR).
    """
    record = _finite(
        {
            "made_by": "dmfnet-eval",
            **more,
            "baseline": evaluation.baseline,
            "methods": evaluation.about,
            "metrics": {measure.name: {"unit": measure.unit, "better": measure.better} for measure in MEASURES},
            "summary": [asdict(table) for table in evaluation.tables()],
            "pairs": [
                {
                    "modality": scored.pair.modality,
                    "name": scored.pair.name,
                    "metrics": scored.metrics,
                    "milliseconds": scored.milliseconds,
                }
                for scored in evaluation.scored
            ],
            "problems": evaluation.problems,
        }
    )
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def number(value: float | None) -> str:
    """With four digits that count; what is 0 but for rounding is 0."""
    return ABSENT if value is None or math.isnan(value) else f"{round(value, 9) + 0.0:.4g}"


def best(table: Table) -> dict[str, set[str]]:
    """The labels of the best mean of each measure: several where they are equal."""
    result = {}
    for measure in table.measures:
        means = {row.label: found.mean for row in table.rows if (found := row.estimates[measure.name]) is not None}
        known = [mean for mean in means.values() if not math.isnan(mean)]
        top = (max if measure.better == "more" else min)(known, default=None)
        result[measure.name] = {label for label, mean in means.items() if mean == top}
    return result


def compared(comparison: Comparison | None) -> str:
    """Mean difference, and on how many pairs it is for the better: "-0.0120, 20 of 23, 1 equal"."""
    if comparison is None:
        return ABSENT
    total = comparison.wins + comparison.ties + comparison.losses
    ties = f", {comparison.ties} equal" if comparison.ties else ""
    mean = comparison.difference.mean
    return f"{ABSENT if math.isnan(mean) else f'{mean:+.4f}'}, {comparison.wins} of {total}{ties}"


def title(measure: Measure) -> str:
    """A measure's name with the direction of better, for the head of a column."""
    return f"{measure.name} {'↑' if measure.better == 'more' else '↓'}"


def heading(table: Table) -> str:
    """A table's modality and number of pairs, in words: "CT-MRI, 23 pairs"."""
    return f"{table.modality}, {table.pairs} pair{'' if table.pairs == 1 else 's'}"


def cell(text: str) -> str:
    """Text for a cell of a Markdown table, where a bar would end it and a tag would be one."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|")
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _estimate(row: Row, name: str, winners: dict[str, set[str]]) -> str:
    estimate = row.estimates[name]
    if estimate is None:
        return ABSENT
    mean = number(estimate.mean)
    shown = f"**{mean}**" if row.label in winners[name] else mean
    return f"{shown}<br>{number(estimate.low)}–{number(estimate.high)}"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_table(table: Table, baseline: str) -> list[str]:
    names = [measure.name for measure in table.measures]
    titles = [title(measure) for measure in table.measures]
    winners = best(table)
    timed = any(row.milliseconds is not None for row in table.rows)
    heads = ["method", *(["ms"] if timed else []), *titles]
    lines = [f"## {heading(table)}", "", _markdown_row(heads), "| --- " * len(heads) + "|"]
    for row in table.rows:
        time = [f"{row.milliseconds:.0f}" if row.milliseconds is not None else ""] if timed else []
        lines.append(_markdown_row([cell(row.label), *time, *(_estimate(row, name, winners) for name in names)]))
    others = [row for row in table.rows if row.against is not None]
    if others:
        lines += ["", f"{COMPARED} {baseline}:", "", _markdown_row(["method", *titles])]
        lines.append("| --- " * (len(names) + 1) + "|")
        for row in others:
            assert row.against is not None
            cells = [compared(row.against[name]).replace(", ", "<br>", 1) for name in names]
            lines.append(_markdown_row([cell(row.label), *cells]))
    return lines


def to_text(evaluation: Evaluation) -> str:
    """Tables of means, for a terminal."""
    blocks = []
    for table in evaluation.tables():
        lines = [["", "ms", *(measure.name for measure in table.measures)]]
        for row in table.rows:
            time = "" if row.milliseconds is None else f"{row.milliseconds:.0f}"
            estimates = (row.estimates[measure.name] for measure in table.measures)
            lines.append([row.label, time, *(number(found.mean if found else None) for found in estimates)])
        first, *widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = [
            f"{label:<{first}}" + "".join(f"{text:>{width + 2}}" for text, width in zip(cells, widths, strict=True))
            for label, *cells in lines
        ]
        blocks.append("\n".join([heading(table), *(row.rstrip() for row in rows)]))
    return "\n\n".join(blocks)


def to_markdown(evaluation: Evaluation, name: str) -> str:
    """Tables of means, intervals and comparisons, under the heading `name`."""
    lines = [f"# {name}", "", NOTE, ""]
    lines += [f"- {label}: {about}" for label, about in evaluation.about.items()]
    for table in evaluation.tables():
        lines += ["", *_markdown_table(table, evaluation.baseline)]
    if evaluation.problems:
        lines += ["", "## Left out, for all methods", "", *(f"- {problem}" for problem in evaluation.problems)]
    return "\n".join([*lines, "", MARKS["report.md"]]) + "\n"
