"""Plot and tables of the measurements on a GPU: `python -m benchmarks.gpu.figure` prints the tables.

With --write it draws how long each way to fuse takes, beside the results, and makes the tables of docs/gpu.md and of
docs/benchmarks.md anew, between their markers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.gpu.tables import (
    COMPILED,
    NAME,
    NETWORKS,
    ON_CPU,
    ON_GPU,
    OPERATORS_CAPTURED,
    OURS,
    PUBLISHED,
    RESULTS,
    TABLES,
    Runs,
    filled,
    fusion,
    images,
    ours,
    three,
)
from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.commands.shared import command

ROOT = Path(__file__).parents[2]
DRAWING = RESULTS / f"{NAME}.svg"
PAGES = (ROOT / "docs" / "gpu.md", ROOT / "docs" / "benchmarks.md")
WAYS = {
    PUBLISHED: "as published, float32",
    "published, eager, TF32": "as published, TF32",
    "published, eager, autocast, channels last, cudnn.benchmark": "as published, float16",
    COMPILED: "the same, torch.compile",
    "optimized, launched": "optimized, PyTorch's operators",
    OPERATORS_CAPTURED: "the same, CUDA graph",
    "kernels, launched": "optimized, our kernels",
    OURS: "the same, CUDA graph",
}
EARLIER = "as in the first run"
CALLS = {ON_GPU: "whole call, all on the GPU", ON_CPU: "whole call, rules on the CPU"}


@dataclass(frozen=True)
class Look:
    """Color and marker of a point; the colors are Okabe and Ito's, and the marker makes the same distinction."""

    color: str
    marker: str


OTHERS, MINE, BEFORE, CALL = Look("#555555", "o"), Look("#0072b2", "D"), Look("#56b4e9", "d"), Look("#d55e00", "s")


@dataclass(frozen=True)
class Point:
    """One variant; its milliseconds are None if it was not measured."""

    name: str
    milliseconds: float | None
    look: Look


def points(runs: Runs, network: str) -> list[Point]:
    """The points of a network's panel, from top to bottom."""
    found = []
    for way, name in WAYS.items():
        row = fusion(runs.now, network, way)
        found.append(Point(name, row["ms"] if row else None, MINE if way == OURS else OTHERS))
    found.append(Point(EARLIER, ours(runs.before, network)["ms"], BEFORE))
    for way, name in CALLS.items():
        row = images(runs.now, network, way)
        found.append(Point(name, row["ms"] if row else None, CALL))
    return found


def _panel(panel: Axes, runs: Runs, network: str) -> None:
    rows = points(runs, network)
    mine = ours(runs.now, network)
    floor = mine["ms"] / mine["of_floor"]
    panel.axvline(floor, color="black", linewidth=1, linestyle=":")
    panel.annotate(
        "floor", (floor, 0), xycoords=("data", "axes fraction"), xytext=(3, 3), textcoords="offset points", fontsize=8
    )
    for place, point in enumerate(rows):
        panel.axhline(place, color="#dddddd", linewidth=0.8, zorder=0)
        text = "not measured" if point.milliseconds is None else three(point.milliseconds)
        at = floor if point.milliseconds is None else point.milliseconds
        label = panel.annotate(text, (at, place), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
        if point.milliseconds is None:
            label.set(style="italic", color="#666666", fontsize=8)
            continue
        panel.plot(point.milliseconds, place, point.look.marker, color=point.look.color, markersize=7)
        if point.look is MINE:
            label.set_fontweight("bold")
    longest = max(point.milliseconds for point in rows if point.milliseconds is not None)
    panel.set_xscale("log")
    panel.set_xlim(floor / 1.6, longest * (longest / floor) ** 0.3)
    panel.xaxis.set_major_locator(LogLocator())
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_title(network, loc="left", fontsize=11)
    panel.set_xlabel("ms, log scale", fontsize=9)
    panel.tick_params(labelsize=9)
    panel.set_yticks(range(len(rows)), [point.name for point in rows])
    panel.set_ylim(len(rows) - 0.1, -0.6)
    panel.spines[["top", "right"]].set_visible(False)


def draw(runs: Runs) -> Figure:
    """Plots the milliseconds of each variant for a 256x256 pair, one panel per network; the floor is dotted."""
    mpl.rcParams["svg.hashsalt"] = "dmfnet-fast"
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, len(NETWORKS), sharey=True, squeeze=False)[0]
    for panel, network in zip(panels, NETWORKS, strict=True):
        _panel(panel, runs, network)
    return figure


@command()
@click.option("--write", is_flag=True, help="Write the drawing, and the tables of docs/gpu.md and docs/benchmarks.md.")
def main(write: bool) -> None:
    """Print the tables of what was measured on a GPU."""
    runs = Runs.read()
    if not write:
        for name, table in TABLES.items():
            click.echo(f"{name}\n\n{table(runs)}\n")
        return
    figure = draw(runs)
    with replacing(DRAWING) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    for page in PAGES:
        text = filled(page.read_text(encoding="utf-8"), runs)
        with replacing(page) as temporary:
            temporary.write_text(text, encoding="utf-8")
    click.echo("\n".join(str(path.relative_to(ROOT)) for path in (DRAWING, *PAGES)))


if __name__ == "__main__":
    main()
