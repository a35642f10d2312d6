"""The scores of the shipped networks, in one table: `python -m benchmarks.scores` writes it into docs/weights.md.

Reads the report that `dmfnet-eval` made of the test pairs. After an exchange of weights, put the new report in its
place and run this again.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks.tradeoff import read_report
from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.commands.shared import command
from dmfnet_fast.errors import DMFNetError

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "benchmarks" / "results" / "0.1.0-evaluation-test.json"
PAGE = ROOT / "docs" / "weights.md"
BEGIN, END = "<!-- scores: begin -->", "<!-- scores: end -->"
# What is shown beside our own networks, which are the methods that were timed.
OTHERS = {
    "published": "images that DM-FNet's authors published (JPEG)",
    "GeSeNet": "GeSeNet, the best of ten other networks",
    "maximum": "the brighter source at each pixel, without rules",
}
# Digits behind the point.
MEASURES = {"objective": 3, "invented": 1, "bleached": 1, "MI": 2, "VIFF": 3, "Qabf": 3}
HEADS = ("", "objective", "invented, %", "bleached, %", "MI", "VIFF", "Qabf", "ms on one core")


def table(report: dict[str, Any]) -> str:
    """Markdown: a row for each network and for each of `OTHERS`; in a cell the means of every modality in turn."""
    by_label: dict[str, list[dict[str, Any]]] = {}
    for part in report["summary"]:
        for row in part["rows"]:
            by_label.setdefault(row["label"], []).append(row)
    lines = [f"| {' | '.join(HEADS)} |", "| --- " * len(HEADS) + "|"]
    for label, rows in by_label.items():
        times = [row["milliseconds"] for row in rows if row["milliseconds"] is not None]
        if not times and label not in OTHERS:
            continue
        cells = [OTHERS.get(label, f"`{label}`")]
        for measure, digits in MEASURES.items():
            means = [row["estimates"][measure]["mean"] for row in rows if row["estimates"].get(measure)]
            cells.append(" / ".join(f"{mean:.{digits}f}" for mean in means))
        lines.append(f"| {' | '.join([*cells, f'{median(times):.0f}' if times else ''])} |")
    pairs = ", ".join(f"{part['modality'].partition('-')[0]} ({part['pairs']} pairs)" for part in report["summary"])
    return f"Means of {pairs}, in this order:\n\n" + "\n".join(lines)


@command()
def main() -> None:
    """Write the table of docs/weights.md anew."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DMFNetError(f"{PAGE}: has no line {BEGIN} with {END} after it; put both where the table belongs")
    with replacing(PAGE) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{table(read_report(REPORT))}\n\n{END}{after}", encoding="utf-8")
    click.echo(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
