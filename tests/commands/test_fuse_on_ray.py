"""`dmfnet-fuse --pairs --ray` on a cluster of two workers on this machine. `make servers` runs this."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dmfnet_fast.commands.fuse import main
from tests.commands.test_fuse_table import write_images, write_table

pytest.importorskip("ray.data", reason="needs the extra ray; `make servers` installs it")

PAIRS = 48
SECONDS = 300.0  # for a run that takes 20 on two idle cores
COMMAND = "from dmfnet_fast.commands.fuse import main; main()"
# turbo, which takes long enough to be killed in between.
OPTIONS = ("--engine", "turbo", "--precision", "float32")


LETHAL = "lethal.png"
# Ends a worker of Ray that opens a file of this name, as a decoder might that crashes.
CRASH = f"""
import os, sys

def end(event, arguments):
    if event == "open" and str(arguments[0]).endswith("{LETHAL}") and "default_worker" in sys.argv[0]:
        os.kill(os.getpid(), 9)

sys.addaudithook(end)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two machines of one core each, and a head without any."""
    folder = tmp_path_factory.mktemp("crash")
    (folder / "sitecustomize.py").write_text(CRASH)
    path = os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=path)
    # Else whatever runs beside this would starve the workers.
    os.environ.update(RAY_worker_niceness="0")
    from ray.cluster_utils import Cluster

    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            running.add_node(num_cpus=1)
        yield running.address
    finally:
        running.shutdown()


def entries(folder: Path) -> dict[Path, list[dict[str, Any]]]:
    """The complete lines of each worker's journal."""
    files = sorted(folder.glob(".dmfnet-fuse-*.jsonl"))
    return {file: [json.loads(line) for line in file.read_text().split("\n")[:-1] if line] for file in files}


def done(lines: list[dict[str, Any]]) -> list[str]:
    return [line["output"] for line in lines if "output" in line]


def run(cluster: str, table: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    given = ["--pairs", str(table), "-o", str(output), "--ray", cluster, "--json", *(options or OPTIONS)]
    command = [sys.executable, "-c", COMMAND, *given]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_worker_is_killed(cluster: str, cli: CliRunner, tmp_path: Path) -> None:
    """The other goes on and the lost one is replaced; no pair is missing or done twice, and a bad one fails alone."""
    rows = write_images(tmp_path / "in", PAIRS, 96)
    (tmp_path / "in" / "pet5.png").write_bytes(b"no image")
    table, out = write_table(tmp_path / "in" / "pairs.csv", rows), tmp_path / "out"
    process = run(cluster, table, out)
    deadline, killed = time.monotonic() + SECONDS, 0
    while not killed and time.monotonic() < deadline and process.poll() is None:
        for file, lines in entries(out).items():
            if done(lines):
                killed = int(file.name.split("-")[2])
                os.kill(killed, signal.SIGKILL)
                break
        time.sleep(0.01)
    output, told = process.communicate(timeout=SECONDS)
    assert killed, told
    assert process.returncode == 2
    report = json.loads(output)
    assert [pair["status"] == "failed" for pair in report["pairs"]] == [number == 5 for number in range(PAIRS)]
    assert "pet5.png: is not an image" in told
    made = entries(out)
    assert len(made) >= 3  # one of each worker, and one of that in the place of the killed one
    by_killed = [name for file, lines in made.items() if f"-{killed}-" in file.name for name in done(lines)]
    assert 0 < len(by_killed) < PAIRS / 2
    # A pair that was recorded but not yet in place when its worker was killed is done again; that is one at most per
    # thread of the worker.
    times = Counter(name for lines in made.values() for name in done(lines))
    assert set(times) == {f"pet{number}.png" for number in range(PAIRS) if number != 5}
    assert sum(times.values()) <= PAIRS - 1 + 3
    assert not list(out.glob(".*.part.*"))

    plain = tmp_path / "plain"
    result = cli.invoke(main, ["--pairs", str(table), "-o", str(plain), "--threads", "1", *OPTIONS])
    assert result.exit_code == 2
    for file in plain.glob("*.png"):
        assert file.read_bytes() == (out / file.name).read_bytes()

    again = run(cluster, table, out)
    output, told = again.communicate(timeout=SECONDS)
    report = json.loads(output)
    assert (report["fused"], report["skipped"], report["failed"]) == (0, PAIRS - 1, 1)


def test_a_pair_that_ends_its_worker(cluster: str, tmp_path: Path) -> None:
    """It is given up after three workers, and all others are done."""
    rows = write_images(tmp_path / "in", 20)
    (tmp_path / "in" / "pet7.png").rename(tmp_path / "in" / LETHAL)
    rows[7]["b"] = LETHAL
    process = run(cluster, write_table(tmp_path / "in" / "pairs.csv", rows), tmp_path / "out")
    output, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    report = json.loads(output)
    assert [pair["status"] == "failed" for pair in report["pairs"]] == [number == 7 for number in range(20)]
    assert f"{LETHAL}: ended the process that fused them 3 times" in told


def test_no_cluster(cli: CliRunner, tmp_path: Path) -> None:
    table = write_table(tmp_path / "in" / "pairs.csv", write_images(tmp_path / "in", 1))
    given = ["--pairs", str(table), "-o", str(tmp_path / "out"), "--ray", "127.0.0.1:1"]
    result = cli.invoke(main, given)
    assert result.exit_code == 2
    assert "error: --ray 127.0.0.1:1: no Ray cluster answers" in result.stderr


def test_a_worker_without_its_engine(cluster: str, tmp_path: Path) -> None:
    table = write_table(tmp_path / "in" / "pairs.csv", write_images(tmp_path / "in", 2))
    process = run(cluster, table, tmp_path / "out", "--engine", "none.onnx")
    _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "error: the worker on" in told
    assert "none.onnx" in told
    assert "Traceback" not in told
