"""The table of engine kinds: what opens, lists and describes engines follows from its rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from dmfnet_fast import EngineError, Fuser, OutputError
from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.engines import kinds
from dmfnet_fast.engines.base import Engine
from dmfnet_fast.engines.kinds import ENGINE_KINDS, OPENVINO, TENSORRT, TORCH, EngineFunctions, EngineKind, Support
from dmfnet_fast.precision import PrecisionChoice
from export.command import main as export

TABLE = Path(__file__).parents[2] / "docs" / "fuse.md"


class Brighter(Engine):
    """An engine that takes the brighter source."""

    largest_batch = 1
    interface = Interface(timesteps=0, interval=False)

    def __init__(self, path: Path, device: str, precision: PrecisionChoice, threads: int | None) -> None:
        self._info = {"engine": path.suffix, "device": device, "precision": precision, "threads": str(threads)}

    def run(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.maximum(inputs["a"], inputs["b"])

    def close(self) -> None:
        """Nothing is held."""

    @property
    def info(self) -> dict[str, str]:
        return self._info


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a kind that is one more row."""
    functions = EngineFunctions(Brighter, lambda path: iter([f"brighter  {path.name}"]))
    row = EngineKind(
        ".brighter",
        "numpy",
        ("numpy",),
        {"cuda": Support(("int8",), "gpu"), "cpu": Support((), "cpu")},
        lambda: functions,
    )
    monkeypatch.setattr(kinds, "ENGINE_KINDS", (*ENGINE_KINDS, row))
    path = tmp_path / "network.BRIGHTER"
    path.write_bytes(b"")
    return path


def test_one_row_is_all(file: Path, cli: CliRunner) -> None:
    a, b = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    with Fuser(file, device="cpu", threads=3, allow_invention=True) as fuser:
        assert np.array_equal(fuser.fuse(a, b), np.maximum(a, b))
        assert fuser.info == {
            "file": file.name,
            "engine": ".BRIGHTER",
            "device": "cpu",
            "precision": "auto",
            "threads": "3",
        }
    with Fuser(file, precision="int8") as fuser:
        assert fuser.info["device"] == "cuda"
    result = cli.invoke(export, ["--inspect", str(file)])
    assert result.stdout == "brighter  network.BRIGHTER\n"
    message = r"or the path of an \.engine, \.onnx, \.safetensors or \.brighter file"
    with pytest.raises(EngineError, match=message):
        Fuser(3)  # type: ignore[arg-type]
    assert kinds.default_devices() == "cuda for an .engine or .brighter file, cpu for an .onnx or .safetensors file"
    assert kinds.files_and_libraries().endswith(".safetensors (PyTorch) or .brighter (numpy)")


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cpu", "float32", r"precision 'float32': on a CPU use auto, or an \.onnx or \.safetensors file of that prec"),
        ("cuda:1", "float16", r"precision 'float16': on a GPU use auto or int8, or an \.engine or \.safetensors file"),
        ("gpu", "auto", "device 'gpu': use cpu, cuda or cuda:N"),
    ],
)
def test_what_a_row_does_not_say(file: Path, device: str, precision: Any, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Fuser(file, device=device, precision=precision)


def test_devices(tmp_path: Path) -> None:
    for kind, device, message in (
        (
            OPENVINO,
            "cuda",
            r"x: \.onnx files run on the CPU, not on 'cuda'; there use an \.engine or \.safetensors file",
        ),
        (TENSORRT, "cpu", r"x: \.engine files run on NVIDIA GPUs, not on 'cpu'; there use an \.onnx or \.safetensors"),
    ):
        with pytest.raises(EngineError, match=message):
            kind.open(tmp_path / "x", device, "auto", None)


def test_names_of_outputs() -> None:
    TORCH.check_output(Path("x.SafeTensors"))
    with pytest.raises(OutputError, match=r"x\.onnx: name a \.safetensors file"):
        TORCH.check_output(Path("x.onnx"))
    with pytest.raises(OutputError, match=r"x: name an \.engine file"):
        TENSORRT.check_output(Path("x"))


def test_every_kind_is_in_the_documents() -> None:
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| `.")]
    assert len(rows) == len(ENGINE_KINDS)
    for kind, row in zip(ENGINE_KINDS, rows, strict=True):
        assert row.startswith(f"| `{kind.suffix}`")
        assert kind.library in row
