"""How many pairs fit into an hour: `python -m benchmarks.hourly --write` puts the table into docs/archives.md.

Computed from the tables of docs/benchmarks.md (measured) and kernels/README.md (counted), which tests compare with
their sources; no run of an hour was made.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "archives.md"
BEGIN, END = "<!-- table: hourly -->", "<!-- /table -->"
NETWORKS = ("nano", "turbo", "base")
SLICES = 181  # of a volume of 1 mm


def _rows(text: str, first: str) -> list[list[str]]:
    """The cells of the rows of Markdown tables whose first cell is `first`."""
    lines = re.findall(rf"^\| (?:\*\*)?{re.escape(first)}(?:\*\*)? \|.*$", text, re.M)
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]


def cpu_ms(network: str) -> float:
    """Measured milliseconds of the network alone on two cores, OpenVINO in bfloat16."""
    section = (ROOT / "docs" / "benchmarks.md").read_text().split(f"**{network}, 256x256**")[1]
    row = next(row for row in _rows(section, "optimized") if row[1] == "OpenVINO bfloat16")
    return float(row[2].split()[0])


def cpu_files_ms() -> float:
    """Measured milliseconds of a pair of nano from files to files, in a folder of 12."""
    (row,) = (
        row
        for row in _rows((ROOT / "docs" / "benchmarks.md").read_text(), "12 files, nano 256x256")
        if "folder" in row[1]
    )
    return float(row[2].split()[0]) / 12


def h200_ms(network: str, whole: bool) -> float | None:
    """Measured milliseconds of the network on our kernels, or of a whole call; None if it was not measured."""
    cell = _rows((ROOT / "docs" / "benchmarks.md").read_text(), network)[0][5 if whole else 4]
    return None if "not" in cell else float(cell)


def floor_ms(network: str, column: int) -> float:
    """Counted milliseconds that the network cannot go below."""
    text = (ROOT / "kernels" / "README.md").read_text()
    if network == "base":
        return float(_rows(text, "total")[0][3 + column]) / 1000
    return float(_rows(text, network)[0][1 + column]) / 1000


def _cells(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "not measured"
    pairs = 3.6e6 / milliseconds
    volumes = pairs / SLICES
    return f"{_short(pairs)} ({_short(volumes)})"


def _short(count: float) -> str:
    """Two digits."""
    rounded = float(f"{count:.2g}")
    if rounded >= 1e6:
        return f"{rounded / 1e6:g} million"
    return f"{rounded:,.0f}"


def table() -> str:
    """The table as Markdown."""
    rows: dict[str, list[float | None]] = {
        "**measured:** 2 cores of an AMD EPYC, the network alone": [cpu_ms(network) for network in NETWORKS],
        "**measured:** the same, from files to files": [cpu_files_ms(), None, None],
        "**measured:** one H200, the network alone": [h200_ms(network, False) for network in NETWORKS],
        "**measured:** one H200, 8-bit images in and out": [h200_ms(network, True) for network in NETWORKS],
        "counted floor, one H100": [floor_ms(network, 1) for network in NETWORKS],
        "counted floor, one Jetson Orin": [floor_ms(network, 2) for network in NETWORKS],
    }
    lines = [f"| in an hour | {' | '.join(NETWORKS)} |", f"| --- |{' ---: |' * len(NETWORKS)}"]
    lines += [f"| {name} | {' | '.join(map(_cells, row))} |" for name, row in rows.items()]
    return "\n".join(lines)


@click.command()
@click.option("--write", is_flag=True, help="Replace the table in docs/archives.md.")
def main(write: bool) -> None:
    """Print the table."""
    click.echo(table())
    if write:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(BEGIN)[1].split(END, 1)[1]
        PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
