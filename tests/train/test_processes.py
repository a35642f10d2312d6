"""Training with several processes, launched like torchrun does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dmfnet_fast.commands.phantom import write_phantoms
from dmfnet_fast.engines import SHIPPED_WEIGHTS

REPOSITORY = Path(__file__).parents[2]


def launch(processes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )


def scalars(run: Path, tag: str) -> list[float]:
    log = EventAccumulator(str(run / "tensorboard" / "stage2")).Reload()
    return [event.value for event in log.Scalars(tag)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    list(write_phantoms(folder, train=2, test=0, size=64))
    return folder


def test_two_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    """Gradients are averaged: two processes, with half of the batch each, take the same steps as one with all of it."""
    settings = ["--batch", "4", "--steps", "3", "--precision", "float32", "--device", "cpu", "--validate-every", "2"]
    for processes in (1, 2):
        arguments = ["--data", data, "--init", SHIPPED_WEIGHTS, "--out", tmp_path / str(processes), *settings]
        done = launch(processes, "-m", "train.stage2", *arguments)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / n / "stage2-checkpoint.pt", weights_only=True) for n in ("1", "2"))
    assert one["identity"] == two["identity"]
    # Gradient norms are compared too, because Adam's steps hardly depend on them.
    norms, losses = ([scalars(tmp_path / n, tag) for n in ("1", "2")] for tag in ("gradient norm", "loss"))
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for kind in ("parameters", "average"):
        first, second = (torch.cat([t.flatten() for t in state[kind]]) for state in (one, two))
        # Gradients are summed in another order, and Adam's first steps follow the sign of even the smallest.
        assert ((first - second).abs() < 1e-6).float().mean() > 0.99
    for score, value in one["validation"].items():
        assert two["validation"][score] == pytest.approx(value, rel=1e-4), (
            "every process validates a part, and all parts count"
        )


SAME_WEIGHTS = """
import sys
import numpy as np, torch
from pathlib import Path
from train import loop
from train.recipe import Recipe, Run
from train.task import Task

class Line(Task):
    name = label = "line"
    scores = []
    identity = {"kind": "line"}
    def __init__(self):
        self.network = torch.nn.Linear(3, 1)
        self.seen = []
    def loss(self, network, draw):
        x = draw.normal(4, 3)[draw.share]
        self.seen.append((x.clone(), draw.share.start, torch.rand(1).item()))
        return (network(x) - x.sum(1, keepdim=True)).square().mean()
    def validate(self, part, parts): raise NotImplementedError
    def images(self): raise NotImplementedError

out = Path(sys.argv[1])
recipe = Recipe(steps=20, batch=4, crop=64, learning_rate=0.1, warmup=1)
run = Run(Path(), out, recipe, None, None, 1000, "float32", False, "cpu")
with loop.joined(run) as accelerator:
    task = Line()
    torch.manual_seed(accelerator.process_index)  # weights differ between processes until Accelerate synchronizes them
    torch.nn.init.normal_(task.network.weight)
    loop.train(task, run, accelerator)
    torch.save(
        {"weights": task.network.state_dict(), "seen": task.seen}, out / f"process{accelerator.process_index}.pt"
    )
"""


def test_two_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "line.py").write_text(SAME_WEIGHTS)
    done = launch(2, tmp_path / "line.py", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"process{n}.pt", weights_only=True) for n in (0, 1))
    for name, values in first["weights"].items():
        assert torch.equal(values, second["weights"][name])
    (crops_1, start_1, dropout_1), (crops_2, start_2, dropout_2) = first["seen"][0], second["seen"][0]
    assert (start_1, start_2) == (0, 2)
    assert not torch.equal(crops_1, crops_2), "each process has its own part of the batch"
    assert dropout_1 != dropout_2


def test_batch_must_divide(data: Path, tmp_path: Path) -> None:
    done = launch(2, "-m", "train.stage1", "--data", data, "--batch", "3", "--device", "cpu", "--out", tmp_path / "run")
    assert done.returncode != 0
    assert "--batch 3: does not divide over 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()
