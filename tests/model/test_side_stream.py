"""What runs on the second stream, with streams that only take notes: real ones need a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmfnet_fast.model import optimize
from dmfnet_fast.model.side_stream import with_side_stream
from tests.synthetic_weights import SMALL, model_by_rule, random_inputs


class Stream:
    device = "cuda"

    def __init__(self, name: str, log: list[tuple[str, str]]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: Stream) -> None:
        self.log.append((self.name, f"waits for {other.name}"))


class Noted(TorchDispatchMode):
    """Notes each of our operators with the stream that it is launched on."""

    def __init__(self, log: list[tuple[str, str]], current: list[Stream]) -> None:
        super().__init__()
        self.log, self.current = log, current

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "dmfnet":
            self.log.append((self.current[-1].name, func._schema.name.removeprefix("dmfnet::")))
        return func(*args, **(kwargs or {}))


def test_the_fusion_runs_beside_the_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, str]] = []
    main, side = Stream("main", log), Stream("side", log)
    current = [main]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    model = model_by_rule(SMALL["paper's"])
    net = optimize(model, kernels=True)
    given = {name: torch.tensor(array) for name, array in random_inputs(model.config).items()}
    with torch.inference_mode():
        alone = net(**given)
        with with_side_stream(side), Noted(log, current):
            assert torch.equal(net(**given), alone)
    assert {name for name, what in log if what in ("group_norm_silu", "attention", "diffuse")} == {"main"}
    assert {name for name, what in log if what in ("fusion_gate", "upsample_add")} == {"side"}
    assert log.count(("side", "waits for main")) == 5
    (joined,) = (number for number, entry in enumerate(log) if entry == ("main", "waits for side"))
    assert all(name == "main" for name, _ in log[joined:]), "nothing runs beside what follows"
    # A level waits for its own feature, not for the next.
    gates = [number for number, entry in enumerate(log) if entry == ("side", "fusion_gate")]
    norms = [number for number, entry in enumerate(log) if entry == ("main", "group_norm_silu")]
    assert gates[0] < norms[-1]
