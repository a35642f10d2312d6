"""A table of volumes by `dmfnet-fuse --pairs`, without Ray and on Ray, on the same two cores.

    python -m benchmarks.archive -o archive.json

A run of a few pairs and one of more, in turn in each way: the difference is what a pair takes, the rest what the start
takes. Two processes without Ray show what is Ray's own. Needs the extras `cpu`, `dicom` and `ray`. Compare only within
one run.
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


WAYS = ("one process, two threads", "two processes, half of the table each", "Ray, two workers")


def run(folder: Path, pairs: int, way: str) -> float:
    """Fuse the same volumes under `pairs` names; how long the whole takes, in seconds."""
    names = [f"study{number}" for number in range(pairs)]
    tables, options = {
        WAYS[0]: ([names], ["--threads", "2"]),
        WAYS[1]: ([names[::2], names[1::2]], ["--threads", "1"]),
        WAYS[2]: ([names], ["--ray"]),
    }[way]
    # By default Ray's workers give way to all other processes, which would be measured too where there are any.
    fair = {**os.environ, "RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as output:
        started = time.perf_counter()
        running = []
        for number, part in enumerate(tables):
            table = folder / f"pairs{number}.csv"
            with table.open("w", newline="") as file:
                csv.writer(file).writerows([("a", "b", "name"), *(("MR", "PT", name) for name in part)])
            given = ["--pairs", str(table), "-o", f"{output}/{number}", *options]
            command = [sys.executable, "-c", COMMAND, *given]
            running.append(subprocess.Popen(command, env=fair, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        codes = [process.wait() for process in running]
        took = time.perf_counter() - started
    if any(codes):
        raise RuntimeError(f"{way}: exit codes {codes}")
    return took


def table(run: dict[str, Any]) -> str:
    """The medians as Markdown, for docs/archives.md."""
    lines = ["| | a pair, s | ratio | start and end, s |", "| --- | ---: | ---: | ---: |"]
    plain = run["medians"][WAYS[1]]["pair"]
    for name, row in run["medians"].items():
        lines.append(f"| {name} | {row['pair']:.2f} | {row['pair'] / plain:.2f} | {row['start']:.1f} |")
    return "\n".join(lines)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--rounds", default=3, show_default=True)
def main(output: Path, rounds: int) -> None:
    """Measure, and write seconds for each pair and for the start as JSON."""
    few, many = PAIRS
    seconds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for volume in tilted_pair(SHAPE):
            write_series(volume, folder / str(volume.modality))
        run(folder, 1, WAYS[0])  # compiles the network for this size
        for _ in range(rounds):
            for name, measured in seconds.items():
                short, long = (run(folder, pairs, name) for pairs in PAIRS)
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
