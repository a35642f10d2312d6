"""The budget of memory traffic and arithmetic, compared with counts by hand and the committed table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import budget
from benchmarks.variants import gigaflop
from kernels.cases.attention import attend
from kernels.cases.convolution import convolve
from kernels.cases.group_norm_silu import norm
from kernels.cases.record import Draw

FEATURE = 6 * 128 * 256 * 256 * 2  # bytes of a feature map of all passes at 256x256
CONV3X3 = 128 * 128 * 9 * 2  # bytes of a weight
FLOP = 2 * 6 * 256 * 256 * 128 * 128 * 9  # of a 3x3 convolution


@pytest.fixture(scope="module")
def recorder() -> budget.Recorder:
    return budget.record()


@pytest.fixture(scope="module")
def rows(recorder: budget.Recorder) -> dict[str, budget.Row]:
    return budget.count(recorder)


def test_readme(recorder: budget.Recorder) -> None:
    _, _, rest = budget.README.read_text().partition(budget.BEGIN)
    committed, end, _ = rest.partition(budget.END)
    assert end
    assert committed.strip() == budget.markdown(recorder), "run python -m benchmarks.budget --write"


def test_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: budget.Recorder) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{budget.BEGIN}\nold\n{budget.END}\nafter\n")
    monkeypatch.setattr(budget, "README", readme)
    monkeypatch.setattr(budget, "record", lambda: recorder)
    monkeypatch.setattr(budget, "markdown", {recorder: "new"}.__getitem__)
    monkeypatch.setattr("sys.argv", ["budget", "--write"])
    budget.main()
    assert readme.read_text() == f"before\n{budget.BEGIN}\n\nnew\n\n{budget.END}\nafter\n"

    readme.write_text("no markers")
    with pytest.raises(SystemExit, match="has no"):
        budget.main()


def test_arithmetic(rows: dict[str, budget.Row]) -> None:
    total = sum(sum(row.flop.values()) for row in rows.values()) / 1e9
    assert total == pytest.approx(1615.8, abs=0.1)
    assert total == pytest.approx(gigaflop("base", 256), rel=0.01)


def test_students_arithmetic() -> None:
    """At 128x128: twelve convolutions of 32 channels, one from 16 to 32, and one from 32 to 4."""
    total = sum(sum(row.flop.values()) for row in budget.count(budget.record("nano")).values())
    assert total == 2 * 9 * 128 * 128 * (12 * 32 * 32 + 16 * 32 + 32 * 4)
    assert total / 1e9 == pytest.approx(gigaflop("nano", 256))


def test_our_launches_of_a_student() -> None:
    """Inputs, fourteen convolutions and the change; each reads and writes its tensors once."""
    ours = budget.record_kernels(True, "nano")
    assert ours.launches == 1 + 14 + 1
    pixels, half, single = 128 * 128, 2, 4

    def convolution(inputs: int, outputs: int, residual: bool = False) -> int:
        maps = inputs + outputs + residual * outputs
        return half * (maps * pixels + 9 * inputs * outputs + outputs)

    ends = 4 * 4 * pixels * single + half * 16 * pixels + half * 4 * pixels + 5 * 4 * pixels * single
    blocks = 6 * (convolution(32, 32) + convolution(32, 32, residual=True))
    assert ours.bytes == ends + convolution(16, 32) + blocks + convolution(32, 4)
    assert ours.flop == 2 * 9 * pixels * (12 * 32 * 32 + 16 * 32 + 32 * 4)
    assert ours.seconds == pytest.approx(ours.bytes / 3.0e12), "every launch is bound by memory"


@pytest.mark.parametrize(("name", "computes_longer"), [("base", True), ("turbo", False)])
def test_own_convolutions_move_less_and_compute_the_same(name: str, computes_longer: bool) -> None:
    """Wide convolutions are bound by arithmetic, which determines their time."""
    cudnn, own = (budget.record_kernels(own, name) for own in (False, True))
    assert own.flop == cudnn.flop
    assert own.launches < 0.7 * cudnn.launches
    assert own.bytes < 0.7 * cudnn.bytes
    assert (own.seconds > 1.1 * own.bytes / 3.0e12) == computes_longer
    assert own.bytes / 3.0e12 <= 1.001 * own.seconds
    assert own.seconds < own.bytes / 3.0e12 + own.flop / 790e12


def test_products_of_operators() -> None:
    """Counted by hand: multiply-adds for every input of a convolution, and for both products of attention."""
    draw = Draw(torch.float16, "meta")
    case = convolve(3, 32, 48, 5, 7, more=16, last=64, residual=True, relu=True)
    assert budget.products(case.operation, case.make(draw)) == 2 * 3 * 5 * 7 * 48 * (9 * 32 + 16 + 64)
    case = attend(3, 64, 5, 7)
    assert budget.products(case.operation, case.make(draw)) == 2 * 2 * 3 * 35 * 35 * 64
    case = norm(3, 64, 0, 5, 7, 8)
    assert budget.products(case.operation, case.make(draw)) == 0


def test_convolution(rows: dict[str, budget.Row]) -> None:
    row, name = rows["3x3 convolution, 256x256"], "denoiser.downs.0.conv1"
    assert row.least[name] == 2 * FEATURE + CONV3X3
    assert row.flop[name] == FLOP
    joint = "denoiser.ups.16.conv1"
    assert row.least[joint] == 3 * FEATURE + 2 * CONV3X3
    assert row.flop[joint] == 2 * FLOP
    # Five convolutions of one input, and one of two, for which eager PyTorch writes both results; no others.
    assert row.eager_bytes == (5 * 2 + 4) * FEATURE + 7 * CONV3X3
    assert row.floor(budget.H100) == pytest.approx(7 * FLOP / 790e12)


def test_epilogues(rows: dict[str, budget.Row]) -> None:
    bias = 3 * 128 * 2  # one per timestep
    assert rows["noise bias"].least["denoiser.downs.0.conv1"] == bias
    assert rows["residual add"].least["denoiser.downs.0.conv2"] == FEATURE
    assert rows["residual add"].floor(budget.ORIN) == pytest.approx(sum(rows["residual add"].least.values()) / 204e9)


def test_group_norm(rows: dict[str, budget.Row]) -> None:
    row = rows["GroupNorm and SiLU, 256x256"]
    parameters = 2 * 128 * 2
    assert row.least["denoiser.downs.0.norm1"] == 2 * FEATURE + parameters
    # Seven maps, each copied, read for the statistics, normalized, activated and copied back.
    assert row.eager_bytes == 7 * ((2 + 1 + 2 + 2 + 2) * FEATURE + parameters)


def test_every_pass_does_the_same(recorder: budget.Recorder) -> None:
    for operation in {launch.operation for launch in recorder.launches if launch.operation.startswith("denoiser")}:
        assert sum(launch.operation == operation for launch in recorder.launches) % 3 == 0
