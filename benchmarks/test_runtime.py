"""Overhead of a call besides the network, and the machine's best rate. Run: `pytest --benchmark-only`.

Compare only within one run. The floor of a fusion is its arithmetic divided by the rate that `test_matmul` measures:
1616 GFLOP for base at 256x256 (optimized), 1/43 of that for turbo and 1/424 for nano.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.commands.fuse import main as fuse_folders
from dmfnet_fast.commands.phantom import write_phantoms
from dmfnet_fast.engines import DEFAULT
from dmfnet_fast.engines.base import Engine
from dmfnet_fast.phantom import Phantom, make_phantom

SIZE = 256
MATRIX = 2048  # rows and columns


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(0, SIZE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.benchmark(group="rate", min_rounds=5, warmup=True, warmup_iterations=1)
def test_matmul(benchmark: Callable[..., Any], dtype: torch.dtype) -> None:
    """The rate that fusions are compared with; one product is 2 * 2048^3 = 17.2 GFLOP."""
    x = torch.rand(MATRIX, MATRIX).to(dtype)
    benchmark(torch.mm, x, x)


class Nothing(Engine):
    """An engine that takes no time, of luminances or of pixels."""

    largest_batch = 1

    def __init__(self, pixels: bool) -> None:
        self.interface = Interface(timesteps=0, interval=True, pixels=pixels)
        self.takes_pixels = pixels

    @property
    def info(self) -> dict[str, str]:
        return {}

    def run(self, inputs: Any) -> Any:
        return np.zeros_like(inputs["b"])

    def close(self) -> None:
        pass


@pytest.mark.parametrize("what", ["fuse", "fuse without network", "fuse without network, pixels", "run"])
@pytest.mark.parametrize("network", ["nano", "turbo"])
@pytest.mark.benchmark(group=f"call, {SIZE}x{SIZE}, float32", min_rounds=8, warmup=True, warmup_iterations=1)
def test_call(benchmark: Callable[..., Any], phantom: Phantom, network: str, what: str) -> None:
    """The whole call, from arrays to a color image; the call without the network, also as a file made with
    --pixels has it; and the network alone."""
    with Fuser(network, precision="float32") as fuser:
        if what == "run":
            a, b = np.random.default_rng(0).uniform(-1, 1, (2, 1, 1, SIZE, SIZE)).astype(np.float32)
            benchmark(fuser.run, a, b)
            return
        if what != "fuse":
            fuser._engine = Nothing(pixels=what.endswith("pixels"))
        benchmark(fuser.fuse, phantom.mri, phantom.pet)


@pytest.mark.parametrize("what", ["folder", "one by one"])
@pytest.mark.benchmark(group=f"12 files, {DEFAULT} {SIZE}x{SIZE}", min_rounds=2)
def test_files(benchmark: Any, tmp_path: Any, what: str) -> None:
    """`dmfnet-fuse` on folders, which reads and writes files while the engine computes, and a plain loop."""
    list(write_phantoms(tmp_path, train=0, test=12, size=SIZE))
    a, b = (tmp_path / "test" / "PET-MRI" / name for name in ("MRI", "PET"))
    output = tmp_path / "fused"

    def folder() -> None:
        arguments = [a, b, "-o", output, "--overwrite"]
        fuse_folders([str(argument) for argument in arguments], standalone_mode=False)

    def one_by_one() -> None:
        output.mkdir(exist_ok=True)
        with Fuser() as fuser:
            for file in sorted(a.iterdir()):
                fuser.fuse(file, b / file.name).save(output / file.name)

    benchmark.pedantic(folder if what == "folder" else one_by_one, rounds=2, iterations=1, warmup_rounds=1)


@pytest.mark.parametrize("what", ["numpy, PIL.Image", "dmfnet_fast"])
@pytest.mark.benchmark(group="import", min_rounds=10)
def test_import(benchmark: Callable[..., Any], what: str) -> None:
    """Import in a new interpreter; `dmfnet_fast` should take less than twice as long as `numpy, PIL.Image`."""
    benchmark(subprocess.run, [sys.executable, "-c", f"import {what}"], check=True)
