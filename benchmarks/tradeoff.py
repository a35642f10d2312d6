"""Quality against cost: `python -m benchmarks.tradeoff REPORT.json -o FILE.svg` plots the objective over time.

REPORT.json is a report of dmfnet-eval. Methods that were timed there are points, all others horizontal lines. The plot
contains no image of the data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.commands.shared import command
from dmfnet_fast.errors import DMFNetError

MEASURE = "objective"
LABEL_HEIGHT = 0.035  # as a fraction of the panel's height
COLORS = ("#2a7f62", "#c9a227", "#3b6ea8", "#a83b5e", "#7f5fa6", "#5f8fa6", "#8f6f4f", "#4f4f4f")


def read_report(path: Path) -> dict[str, Any]:
    """Reads a report of dmfnet-eval.

    Raises:
        DMFNetError: the file cannot be read, or is not such a report.
    """
    try:
        report: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DMFNetError(f"{path}: cannot be read as JSON: {error}; give a report.json of dmfnet-eval") from error
    if not isinstance(report, dict) or report.get("made_by") != "dmfnet-eval":
        raise DMFNetError(f"{path}: was not made by dmfnet-eval; give its report.json")
    return report


def _panel(panel: Axes, table: dict[str, Any]) -> None:
    """Plots one modality."""
    labels: list[tuple[float, str, str]] = []
    for row, color in zip(table["rows"], COLORS * len(table["rows"]), strict=False):
        estimate = row["estimates"][MEASURE]
        mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
        if row["milliseconds"] is None:
            panel.axhline(mean, color=color, linewidth=0.8, linestyle="--")
            labels.append((mean, row["label"], color))
            continue
        panel.errorbar(row["milliseconds"], mean, [[mean - low], [high - mean]], fmt="o", color=color, elinewidth=0.8)
        panel.annotate(
            row["label"],
            (row["milliseconds"], mean),
            textcoords="offset points",
            xytext=(5, 4),
            fontsize=7,
            color=color,
        )
    low, high = panel.get_ylim()
    y = low
    for mean, label, color in sorted(labels):
        y = max(mean, y + LABEL_HEIGHT * (high - low))  # at its line, or above the previous label
        panel.annotate(label, (1, y), xycoords=("axes fraction", "data"), fontsize=7, color=color, va="center")
    panel.set_title(f"{table['modality']}, {table['pairs']} pairs", loc="left", fontsize=9)
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("ms a pair")
    panel.margins(x=0.15)
    panel.spines[["top", "right"]].set_visible(False)


def draw(report: dict[str, Any]) -> Figure:
    """Plots the mean objective with its interval over the median time per pair, one panel per modality."""
    mpl.rcParams["svg.hashsalt"] = "dmfnet-fast"
    tables = report["summary"]
    figure = Figure(figsize=(4.2 * len(tables), 3.6), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for panel, table in zip(panels, tables, strict=True):
        _panel(panel, table)
    panels[0].set_ylabel("objective (less is better)")
    return figure


@command()
@click.argument("report", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Plot to write (.svg).")
def main(report: Path, output: Path) -> None:
    """Plot the objective over time from REPORT, a report.json of dmfnet-eval."""
    figure = draw(read_report(report))
    with replacing(output) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    click.echo(output)


if __name__ == "__main__":
    main()
