"""Training with several processes, launched like torchrun does."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.run import main as torchrun

from dmfnet_fast.commands.phantom import write_phantoms
from dmfnet_fast.engines import SHIPPED_WEIGHTS
from train import loop
from train.stage1 import main as stage1
from train.stage2 import main as stage2

REPOSITORY = Path(__file__).parents[2]


def launch(*arguments: str | Path) -> None:
    """Run two processes, as torchrun does; its own part is played by this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setenv("OMP_NUM_THREADS", "1")
        torchrun(["--standalone", "--nproc-per-node", "2", *map(str, arguments)])


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
    arguments = ["--data", str(data), "--init", str(SHIPPED_WEIGHTS), *settings]
    done = CliRunner().invoke(stage2, [*arguments, "--out", str(tmp_path / "1")])
    assert done.exit_code == 0, done.output
    launch("-m", "train.stage2", *arguments, "--out", tmp_path / "2")
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
    launch(tmp_path / "line.py", tmp_path)
    first, second = (torch.load(tmp_path / f"process{n}.pt", weights_only=True) for n in (0, 1))
    for name, values in first["weights"].items():
        assert torch.equal(values, second["weights"][name])
    (crops_1, start_1, dropout_1), (crops_2, start_2, dropout_2) = first["seen"][0], second["seen"][0]
    assert (start_1, start_2) == (0, 2)
    assert not torch.equal(crops_1, crops_2), "each process has its own part of the batch"
    assert dropout_1 != dropout_2


@pytest.mark.parametrize(
    ("different", "message"),
    [
        ({"num_processes": 3}, "--batch 4: does not divide over 3 processes"),
        ({"distributed_type": DistributedType.FSDP}, "asks for FSDP .only data-parallel training is supported."),
        (
            {"gradient_accumulation_steps": 2},
            "asks for gradient accumulation .use a smaller --batch.: change it or use",
        ),
        ({"device": torch.device("cuda")}, r"asks for device cuda \(--device says cpu\)"),
    ],
)
def test_launchers_that_do_not_fit(
    different: dict[str, Any], message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {
        "num_processes": 2,
        "distributed_type": DistributedType.MULTI_CPU,
        "gradient_accumulation_steps": 1,
        "device": torch.device("cpu"),
        "end_training": lambda: None,
    }
    monkeypatch.setattr(loop, "Accelerator", lambda **_: SimpleNamespace(**usual | different))
    arguments = ["--data", str(data), "--batch", "4", "--device", "cpu", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(stage1, arguments)
    assert done.exit_code == 2
    assert re.search(message, done.stderr)
    assert not (tmp_path / "run").exists()
