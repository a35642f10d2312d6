"""Weights files and the converter: exact round trips, and strict checks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dmfnet_fast import EngineError, OutputError
from dmfnet_fast.commands.convert import main as convert
from dmfnet_fast.config import DMFNET_PRESETS
from dmfnet_fast.model import Denoiser, DMFNet, Student, load_model, preset, save_model
from dmfnet_fast.model.convert import convert_checkpoints
from dmfnet_fast.model.weights import load_denoiser
from tests.synthetic_weights import SMALL, model_by_rule


def edited(source: Path, target: Path, tensors: Callable[[dict[str, torch.Tensor]], object], **metadata: str) -> Path:
    """A copy of a weights file with changed tensors or metadata and the original hash."""
    content = load_file(source)
    tensors(content)
    with safe_open(source, framework="pt") as file:
        save_file(content, target, {**file.metadata(), **metadata})
    return target


def test_round_trip(tiny_weights: Path, tmp_path: Path) -> None:
    model = load_model(tiny_weights)
    model.record = {"stage1": {"steps": 5}}
    save_model(model, tmp_path / "copy.safetensors")
    copy = load_model(tmp_path / "copy.safetensors")
    assert copy.record == model.record
    assert copy.config == preset("tiny")
    assert not copy.training
    for (name, first), second in zip(model.state_dict().items(), copy.state_dict().values(), strict=True):
        assert torch.equal(first, second), name


def test_student(tmp_path: Path) -> None:
    model = model_by_rule(SMALL["student"])
    model.record = {"stage2": {"steps": 5}}
    path = tmp_path / "student.safetensors"
    save_model(model, path)
    copy = load_model(path)
    assert isinstance(copy, Student)
    assert (copy.config, copy.record) == (model.config, model.record)
    assert all(torch.equal(first, second) for first, second in zip(model.parameters(), copy.parameters(), strict=True))
    with pytest.raises(EngineError, match="holds a student, but a denoiser or dmfnet is needed"):
        load_denoiser(path)
    for config in ('{"channels": 8, "blocks": 0}', '{"channels": 16, "norm_groups": 4}'):
        with pytest.raises(EngineError, match="metadata is damaged"):
            load_model(edited(path, tmp_path / "x.safetensors", len, config=config))


def test_float16_loads_as_float32(tiny_weights: Path, tmp_path: Path) -> None:
    model = load_model(tiny_weights)
    save_model(model, tmp_path / "half.safetensors", torch.float16)
    half = load_model(tmp_path / "half.safetensors")
    assert isinstance(half, DMFNet)
    assert isinstance(model, DMFNet)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert torch.equal(half.denoiser.init_conv.weight, model.denoiser.init_conv.weight.half().float())
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * tiny_weights.stat().st_size


def test_metadata(tiny_weights: Path) -> None:
    with safe_open(tiny_weights, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["kind"] == "dmfnet"
    assert len(metadata["sha256"]) == 64
    assert "32" in metadata["config"]


def test_changed_weights_are_detected(tiny_weights: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["denoiser.init_conv.bias"][0] += 1e-3

    with pytest.raises(EngineError, match="hash"):
        load_model(edited(tiny_weights, tmp_path / "x.safetensors", change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fusion.rgb_decode1.conv.bias"), "missing fusion.rgb_decode1.conv.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda t: t.update({"denoiser.init_conv.bias": torch.zeros(3)}), r"init_conv.bias is \[3\], not \[32\]"),
        (lambda t: t["denoiser.init_conv.bias"].fill_(torch.nan), "init_conv.bias holds NaN"),
    ],
)
def test_invalid_tensors_are_named(tiny_weights: Path, tmp_path: Path, change: Any, message: str) -> None:
    path = edited(tiny_weights, tmp_path / "x.safetensors", change)
    with pytest.raises(EngineError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "other 7"}, "not written by this package"),
        ({"kind": "denoiser"}, "but a dmfnet or student is needed"),
        ({"config": "{}"}, "metadata is damaged"),
        ({"config": '{"channels": 33, "norm_groups": 3}'}, "metadata is damaged"),
    ],
)
def test_foreign_metadata(tiny_weights: Path, tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        load_model(edited(tiny_weights, tmp_path / "x.safetensors", len, **metadata))


def test_denoiser_files(tmp_path: Path) -> None:
    model = Denoiser(DMFNET_PRESETS["tiny"])
    save_model(model, tmp_path / "denoiser.safetensors")
    assert isinstance(load_denoiser(tmp_path / "denoiser.safetensors"), Denoiser)
    with pytest.raises(EngineError, match="but a dmfnet or student is needed"):
        load_model(tmp_path / "denoiser.safetensors")


def test_failed_save_leaves_no_file(tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        save_model(load_model(tiny_weights), tmp_path / "nowhere" / "x.safetensors")
    with pytest.raises(OutputError, match="is a folder"):
        save_model(load_model(tiny_weights), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_save_to_unwritable_folder(tiny_weights: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(load_model(tiny_weights), "/proc/x.safetensors")


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_saved_files_have_ordinary_permissions(tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    save_model(load_model(tiny_weights), tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_schedule_buffers_are_ignored(published_checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    denoiser, fusion = published_checkpoints
    content = torch.load(denoiser, weights_only=True)
    content["betas"] = torch.zeros(2000, dtype=torch.float64)
    torch.save(content, tmp_path / "gen.pth")
    model = convert_checkpoints(tmp_path / "gen.pth", fusion)
    assert model.record["origin"] == "published checkpoints"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("denoise_fn.mid.0.attn.qkv.weight"), "missing mid.0.attn.qkv.weight"),
        (lambda t: t.update({"denoise_fn.ups.0.attn.qkv.weight": torch.zeros(1)}), "unknown ups.0.attn.qkv.weight"),
        (lambda t: t.update({"denoise_fn.init_conv.weight": torch.zeros(128, 3, 3, 3)}), r"\[128, 3, 3, 3\]"),
        (lambda t: t.update({"denoise_fn.init_conv.bias": torch.zeros(128, dtype=torch.int8)}), "torch.int8"),
    ],
)
def test_invalid_checkpoint(
    published_checkpoints: tuple[Path, Path], tmp_path: Path, change: Any, message: str
) -> None:
    denoiser, fusion = published_checkpoints
    content = torch.load(denoiser, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "gen.pth")
    with pytest.raises(EngineError, match=message):
        convert_checkpoints(tmp_path / "gen.pth", fusion)


class Exploit:
    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (Path("exploited"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a torch checkpoint"),
        (b"garbage" * 50, "not a torch checkpoint"),
        (None, "no such file"),
        ([torch.zeros(1)], "not a dictionary of tensors"),
        ({0: torch.zeros(1)}, "not a dictionary of tensors"),
        ({"model": Exploit()}, "not a torch checkpoint"),
    ],
    ids=["empty", "garbage", "missing", "list", "numbered", "code"],
)
def test_unreadable_checkpoint(
    cli: CliRunner, published_checkpoints: tuple[Path, Path], tmp_path: Path, content: Any, message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "MIF.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    output = tmp_path / "out.safetensors"
    arguments = ["--denoiser", str(published_checkpoints[0]), "--fusion", str(path), "-o", str(output)]
    result = cli.invoke(convert, arguments)
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert message in result.stderr
    assert not output.exists()
    assert not (tmp_path / "exploited").exists()
