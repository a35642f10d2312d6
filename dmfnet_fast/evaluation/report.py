"""An evaluation as JSON, as Markdown, and in a terminal."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from dmfnet_fast.evaluation.scores import Evaluation, Row, Table
from dmfnet_fast.evaluation.statistics import Comparison
from dmfnet_fast.metrics import METRICS

NOTE = (
    "Means over pairs; below them 95 % bootstrap intervals. Scored is the luminance of the 8-bit picture. Higher is "
    "taken for better, but for the objective; EN, SD, SF and AG do not look at the sources, and noise raises them."
)


def as_json(value: Any) -> Any:
    """Numbers that JSON does not know become None."""
    if isinstance(value, dict):
        return {key: as_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_dict(evaluation: Evaluation, **more: Any) -> dict[str, Any]:
    """All of it: summaries, and every pair's scores."""
    return as_json(
        {
            **more,
            "baseline": evaluation.baseline,
            "methods": evaluation.about,
            "metrics": {metric.name: {"unit": metric.unit, "better": metric.better} for metric in METRICS},
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


def number(value: float) -> str:
    """With four digits that count."""
    return f"{value + 0.0:.4g}"  # -0.0 becomes 0


def best(table: Table) -> dict[str, str]:
    """The label of the best mean of each metric."""
    result = {}
    for metric in METRICS:
        sign = 1 if metric.better == "more" else -1
        means = [sign * row.estimates[metric.name].mean for row in table.rows]
        result[metric.name] = table.rows[int(np.argmax(means))].label
    return result


def compared(comparison: Comparison) -> str:
    """Difference and wins, in words: "-0.012, better on 20 of 23"."""
    total = comparison.wins + comparison.ties + comparison.losses
    ties = f", {comparison.ties} equal" if comparison.ties else ""
    return f"{comparison.difference.mean:+.4f}, better on {comparison.wins} of {total}{ties}"


def title(metric_name: str) -> str:
    """A metric's name with the direction of better, for the head of a column."""
    (metric,) = (metric for metric in METRICS if metric.name == metric_name)
    return f"{metric.name} {'↑' if metric.better == 'more' else '↓'}"


def _cell(row: Row, name: str, winners: dict[str, str]) -> str:
    estimate = row.estimates[name]
    mean = number(estimate.mean)
    shown = f"**{mean}**" if winners[name] == row.label else mean
    return f"{shown}<br>{number(estimate.low)}–{number(estimate.high)}"


def _markdown_table(table: Table, baseline: str) -> list[str]:
    names = [metric.name for metric in METRICS]
    winners = best(table)
    timed = any(row.milliseconds is not None for row in table.rows)
    heads = ["method", *(["ms"] if timed else []), *map(title, names)]
    lines = [
        f"## {table.modality}-MRI, {table.pairs} pairs",
        "",
        f"| {' | '.join(heads)} |",
        "| --- " * len(heads) + "|",
    ]
    for row in table.rows:
        time = [f"{row.milliseconds:.0f}" if row.milliseconds is not None else ""] if timed else []
        lines.append(f"| {' | '.join([row.label, *time, *(_cell(row, name, winners) for name in names)])} |")
    others = [row for row in table.rows if row.against is not None]
    if others:
        lines += ["", f"Compared with {baseline}, pair by pair:", "", f"| method | {' | '.join(map(title, names))} |"]
        lines.append("| --- " * (len(names) + 1) + "|")
        for row in others:
            assert row.against is not None
            cells = [compared(row.against[name]).replace(", ", "<br>", 1) for name in names]
            lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return lines


def to_text(evaluation: Evaluation) -> str:
    """Tables of means, for a terminal."""
    blocks = []
    width = max(map(len, evaluation.about))
    for table in evaluation.tables():
        heads = ["ms", *(metric.name for metric in METRICS)]
        lines = [f"{table.modality}-MRI, {table.pairs} pairs", " " * width + "".join(f"{head:>10}" for head in heads)]
        for row in table.rows:
            cells = ["" if row.milliseconds is None else f"{row.milliseconds:.0f}"]
            cells += [number(row.estimates[metric.name].mean) for metric in METRICS]
            lines.append(f"{row.label:<{width}}" + "".join(f"{cell:>10}" for cell in cells))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def to_markdown(evaluation: Evaluation, heading: str) -> str:
    """Tables of means, intervals and comparisons."""
    lines = [f"# {heading}", "", NOTE, ""]
    lines += [f"- {label}: {about}" for label, about in evaluation.about.items()]
    for table in evaluation.tables():
        lines += ["", *_markdown_table(table, evaluation.baseline)]
    if evaluation.problems:
        lines += ["", "## Left out, for all methods", "", *(f"- {problem}" for problem in evaluation.problems)]
    return "\n".join(lines) + "\n"
