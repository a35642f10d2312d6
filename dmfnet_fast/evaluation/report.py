"""The evaluation report as JSON, as Markdown, and as text for a terminal."""

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
    "Means over pairs, with 95 % bootstrap intervals below. Scores are of the 8-bit image: of its luminance and, if b "
    "is in color, of its colors. Arrows show which direction is considered better. EN, SD, SF and AG do not depend on "
    "the sources, and noise raises them."
)
COMPARED = "Mean difference and number of better pairs, in a pairwise comparison with"
ABSENT = "–"  # stands for an undefined score


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(evaluation: Evaluation, **more: Any) -> str:
    """The whole evaluation: summaries, and the scores of every pair.

    A score is null if it is undefined (color measures of gray pairs) or infinite (PSNR). `more` is added to the top
    level.
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
    """Format a number with four significant digits; rounding errors around 0 are removed."""
    return ABSENT if value is None or math.isnan(value) else f"{round(value, 9) + 0.0:.4g}"


def best(table: Table) -> dict[str, set[str]]:
    """For each measure, the labels of the methods with the best mean, several if their means are equal."""
    result = {}
    for measure in table.measures:
        means = {row.label: found.mean for row in table.rows if (found := row.estimates[measure.name]) is not None}
        known = [mean for mean in means.values() if not math.isnan(mean)]
        top = (max if measure.better == "more" else min)(known, default=None)
        result[measure.name] = {label for label, mean in means.items() if mean == top}
    return result


def compared(comparison: Comparison | None) -> str:
    """Mean difference, number of better pairs and number of ties: "-0.0120, 20 of 23, 1 equal"."""
    if comparison is None:
        return ABSENT
    total = comparison.wins + comparison.ties + comparison.losses
    ties = f", {comparison.ties} equal" if comparison.ties else ""
    mean = comparison.difference.mean
    return f"{ABSENT if math.isnan(mean) else f'{mean:+.4f}'}, {comparison.wins} of {total}{ties}"


def title(measure: Measure) -> str:
    """Column title of a measure: its name, and an arrow in the direction of better values."""
    return f"{measure.name} {'↑' if measure.better == 'more' else '↓'}"


def heading(table: Table) -> str:
    """Heading of a table: modality and number of pairs, as in "CT-MRI, 23 pairs"."""
    return f"{table.modality}, {table.pairs} pair{'' if table.pairs == 1 else 's'}"


def cell(text: str) -> str:
    """Escape text for a cell of a Markdown table, in which bars and HTML tags are special."""
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
    """Tables of means as plain text, for a terminal."""
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
    """Tables of means, intervals and comparisons as Markdown, under the heading `name`."""
    lines = [f"# {name}", "", NOTE, ""]
    lines += [f"- {label}: {about}" for label, about in evaluation.about.items()]
    for table in evaluation.tables():
        lines += ["", *_markdown_table(table, evaluation.baseline)]
    if evaluation.problems:
        lines += ["", "## Pairs excluded for all methods", "", *(f"- {problem}" for problem in evaluation.problems)]
    return "\n".join([*lines, "", MARKS["report.md"]]) + "\n"
