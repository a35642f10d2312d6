"""A table of volumes by `dmfnet-fuse --pairs`, without Ray and on Ray on the same cores.

    python -m benchmarks.archive -o archive.json

A run of a few pairs and one of more, in turn with and without Ray: the difference is what a pair takes, the rest what
the start takes. Needs the extras `cpu`, `dicom` and `ray`. Compare only within one run.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.test_volumes import tilted_pair
from dmfnet_fast.volumes.phantom import write_series

SHAPE = (91, 217, 181)
PAIRS = (2, 10)
COMMAND = "from dmfnet_fast.commands.fuse import main; main()"


def run(folder: Path, pairs: int, ray: bool) -> float:
    """Fuse the same volumes under `pairs` names; how long the whole command takes, in seconds."""
    table = folder / "pairs.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("a", "b", "name"))
        writer.writerows(("MR", "PT", f"study{number}") for number in range(pairs))
    with tempfile.TemporaryDirectory() as output:
        given = ["--pairs", str(table), "-o", output, *(["--ray"] if ray else [])]
        started = time.perf_counter()
        # By default Ray's workers give way to all other processes, which would be measured too where there are any.
        fair = {**os.environ, "RAY_worker_niceness": "0"}
        subprocess.run([sys.executable, "-c", COMMAND, *given], check=True, capture_output=True, env=fair)
        return time.perf_counter() - started


def table(run: dict[str, Any]) -> str:
    """The medians as Markdown, for docs/archives.md."""
    lines = ["| | a pair, s | ratio | start and end, s |", "| --- | ---: | ---: | ---: |"]
    plain = run["medians"]["without Ray"]["pair"]
    for name, row in run["medians"].items():
        lines.append(f"| {name} | {row['pair']:.2f} | {row['pair'] / plain:.2f} | {row['start']:.1f} |")
    return "\n".join(lines)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--rounds", default=3, show_default=True)
def main(output: Path, rounds: int) -> None:
    """Measure, and write seconds for each pair and for the start as JSON."""
    few, many = PAIRS
    seconds: dict[str, list[dict[str, float]]] = {"without Ray": [], "on Ray": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for volume in tilted_pair(SHAPE):
            write_series(volume, folder / str(volume.modality))
        run(folder, 1, ray=False)  # compiles the network for this size
        for _ in range(rounds):
            for name, measured in seconds.items():
                short, long = (run(folder, pairs, ray=name == "on Ray") for pairs in PAIRS)
                pair = (long - short) / (many - few)
                measured.append({"pair": round(pair, 3), "start": round(short - few * pair, 2)})
                click.echo(f"{name}: {measured[-1]}", err=True)
    medians = {
        name: {key: float(np.median([one[key] for one in measured])) for key in ("pair", "start")}
        for name, measured in seconds.items()
    }
    about = {"shape": SHAPE, "pairs": PAIRS, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    output.write_text(json.dumps({"about": about, "medians": medians, "rounds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
