"""The commands of both stages, on phantoms."""

from __future__ import annotations

import errno
import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.exc import BackendCompilerFailed

from dmfnet_fast import Fuser
from dmfnet_fast.commands.phantom import write_phantoms
from dmfnet_fast.config import DMFNET_PRESETS
from dmfnet_fast.diffusion.schedule import FUSION_TIMESTEPS
from dmfnet_fast.engines import SHIPPED_WEIGHTS
from dmfnet_fast.errors import OutputError
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.model import DMFNet, ModelConfig, Student, load_model, preset, save_model
from dmfnet_fast.model.fusion import FusionNetwork
from dmfnet_fast.model.rewrites import of_kind
from dmfnet_fast.model.weights import load_denoiser, read_metadata, weights_hash
from train import checkpoint, loop
from train.data import CropSampler, load_pairs
from train.denoising import Denoising, diffuse, with_sigma
from train.denoising import random_levels as random_stage1_levels
from train.fusing import OTHER_RULES, Fusing, drawn_rules, intervals, random_levels, start_fusion
from train.losses import LOSSES, hybrid_loss
from train.recipe import Recipe, Run
from train.release import main as release
from train.stage1 import main as stage1
from train.stage2 import main as stage2
from train.task import Draw, Task

SETTINGS = ("--batch", "2", "--steps", "3", "--precision", "float32", "--device", "cpu", "--validate-every", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    list(write_phantoms(folder, train=2, test=1, size=64))
    return folder


def invoke(command: Any, *arguments: Any) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    first = invoke(stage1, "--data", data, "--out", out / "s1", *SETTINGS)
    assert first.exit_code == 0, first.output
    second = invoke(
        stage2, "--data", data, "--out", out / "s2", "--denoiser", out / "s1" / "denoiser.safetensors", *SETTINGS
    )
    assert second.exit_code == 0, second.output
    third = invoke(stage2, "--data", data, "--out", out / "student", "--preset", "nano", *SETTINGS)
    assert third.exit_code == 0, third.output
    return out


def test_results(trained: Path) -> None:
    denoiser = load_denoiser(trained / "s1" / "denoiser.safetensors")
    model = of_kind(load_model(trained / "s2" / "dmfnet.safetensors"), DMFNet)
    assert model.record["stage1"]["steps"] == 3
    assert model.record["stage2"]["pairs"] == 3, "one of two pairs per modality is held out"
    for (name, frozen), original in zip(
        model.denoiser.state_dict().items(), denoiser.state_dict().values(), strict=True
    ):
        assert torch.equal(frozen, original), name


def scalars(run: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run's TensorBoard log as (step, value), except those that depend on time."""
    log = EventAccumulator(str(run / "tensorboard" / stage)).Reload()
    tags = [tag for tag in log.Tags()["scalars"] if tag != "images per second"]
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in tags}


def test_tensorboard(trained: Path) -> None:
    for folder, stage, scores in (
        ("s1", "stage1", {f"reconstruction error/t = {t}" for t in (50, 200, 600, 1200)}),
        ("s2", "stage2", {f"objective/{m}" for m in ("CT", "PET", "SPECT")}),
    ):
        logged = scalars(trained / folder, stage)
        assert logged.keys() == {"loss", "gradient norm", "learning rate"} | scores
        assert [step for step, _ in logged["loss"]] == [1, 2, 3]
        assert all([step for step, _ in logged[score]] == [2, 3] for score in scores)
        log = EventAccumulator(str(trained / folder / "tensorboard" / stage)).Reload()
        (first, _) = log.Images("validation")
        assert Image.open(io.BytesIO(first.encoded_image_string)).size[0] > 200


@pytest.mark.parametrize("folder", ["s2", "student"])
def test_validation_scores_the_saved_image(folder: str, data: Path, trained: Path, tmp_path: Path) -> None:
    """Validation gives the same scores for held-out pairs as the files that dmfnet-fuse writes."""
    weights = trained / folder / "dmfnet.safetensors"
    validation = load_model(weights).record["stage2"]["validation"]
    assert validation["step"] == 3
    with Fuser(weights, precision="float32") as fuser:
        for modality in ("CT", "PET", "SPECT"):
            a, b = (data / "train" / f"{modality}-MRI" / kind / "002.png" for kind in ("MRI", modality))
            fuser.fuse(a, b).save(tmp_path / "fused.png")
            fused, luminance_a, luminance_b = (
                torch.from_numpy(np.array(Image.open(path).convert("L"))).float().div(127.5).sub(1)[None, None]
                for path in (tmp_path / "fused.png", a, b)
            )
            expected = hybrid_loss(fused, luminance_a, luminance_b).item()
            # The optimized graph rounds a few pixels to a neighboring gray level.
            assert validation[f"objective/{modality}"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("stage", ["stage1", "stage2", "student"])
def test_resume_is_exact(stage: str, data: Path, trained: Path, tmp_path: Path) -> None:
    command, folder, file, more = {
        "stage1": (stage1, "s1", "denoiser.safetensors", ()),
        "stage2": (stage2, "s2", "dmfnet.safetensors", ("--denoiser", trained / "s1" / "denoiser.safetensors")),
        "student": (stage2, "student", "dmfnet.safetensors", ("--preset", "nano")),
    }[stage]
    stage = stage.replace("student", "stage2")
    arguments = ("--data", data, "--out", tmp_path, *more, *SETTINGS)
    assert invoke(command, *arguments, "--minutes", "1e-9").exit_code == 0
    assert torch.load(tmp_path / f"{stage}-checkpoint.pt", weights_only=True)["step"] == 1
    assert invoke(command, *arguments).exit_code == 0
    load: Any = load_denoiser if stage == "stage1" else load_model
    resumed, whole = load(tmp_path / file), load(trained / folder / file)
    for (name, first), second in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(first, second), name
    assert scalars(tmp_path, stage) == scalars(trained / folder, stage), "the same losses, rates and scores"


def test_both_stages_in_one_folder(data: Path, trained: Path, tmp_path: Path) -> None:
    for name in ("stage1-checkpoint.pt", "denoiser.safetensors"):
        (tmp_path / name).write_bytes((trained / "s1" / name).read_bytes())
    result = invoke(
        stage2, "--data", data, "--denoiser", tmp_path / "denoiser.safetensors", "--out", tmp_path, *SETTINGS,
        "--minutes", "1e-9",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert invoke(stage1, "--data", data, "--out", tmp_path, *SETTINGS).exit_code == 0, "the run is already complete"
    assert {path.name for path in tmp_path.iterdir()} == {
        "stage1-checkpoint.pt", "stage2-checkpoint.pt", "denoiser.safetensors", "dmfnet.safetensors", "tensorboard",
    }  # fmt: skip


def test_starting_from_weights(data: Path, trained: Path, tmp_path: Path) -> None:
    """--init starts from the weights of an earlier run, which the record names."""
    earlier = trained / "s2" / "dmfnet.safetensors"
    result = invoke(stage2, "--data", data, "--out", tmp_path, "--init", earlier, *SETTINGS, "--learning-rate", "1e-12")
    assert result.exit_code == 0, result.output
    first, second = load_model(earlier), load_model(tmp_path / "dmfnet.safetensors")
    for (name, before), after in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(after, before, atol=1e-9, rtol=1e-6, msg=name)
    assert second.record["stage2"]["init"] == {"weights": weights_hash(first.state_dict()), **first.record["stage2"]}
    assert second.record["stage1"] == first.record["stage1"]
    result = invoke(stage1, "--data", data, "--out", tmp_path / "s1", "--preset", "small", "--init", earlier)
    assert result.exit_code == 2
    assert "is not of preset small" in result.stderr


def test_compiled(data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--compile traces the network; here, with a backend that does not change the graphs."""
    compiled = []
    original = torch.compile

    def traced(function: Any) -> Any:
        compiled.append(function)
        return original(function, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    denoiser = trained / "s1" / "denoiser.safetensors"
    arguments = ("--data", data, "--out", tmp_path, "--denoiser", denoiser, *SETTINGS, "--minutes", "1e-9")
    result = invoke(stage2, *arguments, "--compile")
    assert result.exit_code == 0, result.output
    assert len(compiled) == 1
    for tag in ("loss", "gradient norm"):
        (_, eager), *_ = scalars(trained / "s2", "stage2")[tag]
        ((step, value),) = scalars(tmp_path, "stage2")[tag]
        assert step == 1
        assert value == pytest.approx(eager, rel=1e-4)


def test_compiler_that_fails(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_compiler(*_: Any) -> None:
        raise BackendCompilerFailed(lambda: None, RuntimeError("g++: not found"), None)

    monkeypatch.setattr(torch, "compile", without_compiler)
    result = invoke(stage2, "--data", data, "--out", tmp_path, "--preset", "nano", *SETTINGS, "--compile")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: --compile failed (backend=")
    assert result.stderr.endswith("; install a C++ compiler if on a CPU, or omit --compile\n")


def test_denoiser_of_another_size(data: Path, trained: Path, tmp_path: Path) -> None:
    save_model(DMFNet(DMFNET_PRESETS["small"]), tmp_path / "small.safetensors")
    result = invoke(
        stage2, "--data", data, "--out", tmp_path / "run", "--init", tmp_path / "small.safetensors",
        "--denoiser", trained / "s1" / "denoiser.safetensors", *SETTINGS,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "small.safetensors: is of another size than the denoiser in " in result.stderr
    assert result.stderr.endswith("denoiser.safetensors; use two of one preset\n")


def test_unfreezing(data: Path, trained: Path, tmp_path: Path) -> None:
    """The part of the up-path that fusion uses learns too; in bfloat16, where a frozen input once crashed PyTorch."""
    earlier = trained / "s2" / "dmfnet.safetensors"
    settings = ("--batch", 2, "--steps", 2, "--device", "cpu", "--unfreeze")
    result = invoke(stage2, "--data", data, "--out", tmp_path, "--init", earlier, *settings)
    assert result.exit_code == 0, result.output
    before, after = (of_kind(load_model(path), DMFNet) for path in (earlier, tmp_path / "dmfnet.safetensors"))
    changed = {
        name
        for name, value in before.denoiser.state_dict().items()
        if not torch.equal(value, after.denoiser.state_dict()[name])
    }
    assert {name.split(".")[0] for name in changed} == {"ups"}
    numbers = {int(name.split(".")[1]) for name in changed}
    unused = {len(before.denoiser.ups) - 1, len(before.denoiser.ups) - 2}
    assert numbers == set(range(len(before.denoiser.ups))) - unused
    assert after.record["stage2"]["unfrozen"] == "up-path"
    frozen = before.denoiser.state_dict()
    assert weights_hash(frozen) == weights_hash(load_denoiser(trained / "s1" / "denoiser.safetensors").state_dict())


@pytest.mark.parametrize(("before", "after"), [((5, 10, 20), (5,)), ((5,), (5, 10, 20)), ((5, 10), (5, 10, 20))])
def test_starting_from_other_timesteps(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """If features are equal at all timesteps, a network fuses them the same way after a change of timesteps."""
    torch.manual_seed(0)
    first, second = (FusionNetwork(ModelConfig(16, 4, timesteps)) for timesteps in (before, after))
    start_fusion(second, first)
    images = []
    for network, timesteps in ((first, before), (second, after)):
        torch.manual_seed(1)
        shapes = [(1, 32, 4, 4), *((1, 16, 4 * 2**n, 4 * 2**n) for n in range(1, 5))]
        both = [[torch.randn(shape).repeat(1, len(timesteps), 1, 1) for shape in shapes] for _ in "ab"]
        with torch.no_grad():
            images.append(network(*both))
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-6)


def test_a_preset_of_other_timesteps(data: Path, trained: Path, tmp_path: Path) -> None:
    earlier = trained / "s2" / "dmfnet.safetensors"
    arguments = ("--data", data, "--init", earlier, *SETTINGS)
    result = invoke(stage2, *arguments, "--out", tmp_path, "--preset", "turbo")
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "dmfnet.safetensors")
    assert isinstance(model, DMFNet)
    assert model.config == preset("turbo")
    assert model.record["stage2"]["timesteps"] == [5]
    with Fuser(tmp_path / "dmfnet.safetensors", precision="float32") as fuser:
        assert fuser.fuse(*(np.zeros((64, 64), np.uint8) for _ in "ab")).shape == (64, 64)
    denoiser = ("--denoiser", trained / "s1" / "denoiser.safetensors")
    result = invoke(stage2, "--data", data, *denoiser, *SETTINGS, "--out", tmp_path / "other", "--preset", "small")
    assert result.exit_code == 2
    assert "is not of the size of preset small" in result.stderr


def test_a_student_has_no_denoiser(data: Path, trained: Path, tmp_path: Path) -> None:
    model = load_model(trained / "student" / "dmfnet.safetensors")
    assert isinstance(model, Student)
    assert model.config == preset("nano")
    assert model.record["stage2"]["pairs"] == 3
    for more, message in (
        (("--denoiser", trained / "s1" / "denoiser.safetensors"), "leave --denoiser and --unfreeze out"),
        (("--unfreeze",), "leave --denoiser and --unfreeze out"),
        (("--init", trained / "s2" / "dmfnet.safetensors"), "students start from their own weights alone"),
    ):
        result = invoke(stage2, "--data", data, "--preset", "nano", "--out", tmp_path, *SETTINGS, *more)
        assert result.exit_code == 2
        assert message in result.stderr


def test_training_sees_the_interval_of_inference(data: Path) -> None:
    """Every pair gets the interval that `Canvas` computes for its rules."""
    pair = next(pair for pair in load_pairs(data, 64) if pair.modality == "PET")
    planes = torch.from_numpy(np.stack([pair.planes] * 3, axis=1)[:, :, None]).float()
    rules = [Rules(), Rules(0.4), Rules(0.75, invention=True)]
    kept = torch.tensor([rule.kept_chroma for rule in rules]).view(-1, 1, 1, 1)
    invention = torch.tensor([rule.invention for rule in rules]).view(-1, 1, 1, 1)
    expected = [Canvas(pair.a, pair.colors, rules=rule).interval for rule in rules]
    torch.testing.assert_close(intervals(planes, kept, invention), torch.from_numpy(np.stack(expected)))


def test_most_pairs_are_trained_with_the_default_rules() -> None:
    kept, invention = drawn_rules(4000, np.random.default_rng(0))
    usual = (kept == np.float32(0.75)) & ~invention
    assert usual.mean() == pytest.approx(1 - OTHER_RULES, abs=0.03)
    assert np.unique(kept).size > 100
    assert 0.2 < invention[~usual].mean() < 0.8


def test_outputs_beyond_the_interval_have_gradients(data: Path) -> None:
    """Beyond the interval, the saved image does not change, so the distance to it must pull the network back."""
    recipe = Recipe(steps=1, batch=2, crop=64, learning_rate=1e-3)
    run = Run(data, data / "run", recipe, None, None, 10, "float32", False, "cpu")
    with loop.joined(run) as accelerator:
        task = Fusing(run, None, "nano", False, accelerator)
        assert isinstance(task.model, Student)
        bias = task.model.last.bias
        assert bias is not None
        torch.nn.init.constant_(bias, 5.0)
        task.loss(task.model, loop._Draws(recipe, accelerator).at(0)).backward()
    assert bias.grad is not None
    assert (bias.grad > 0).all()


def test_the_default_loss_has_the_identity_that_it_had_before_losses_had_names(trained: Path) -> None:
    """Or no run that began then could go on."""
    state = torch.load(trained / "student" / "stage2-checkpoint.pt", weights_only=True)
    assert state["identity"]["loss"] == {"distance": 0.5, "specks": 16.0, "other rules": 0.15}


def test_another_loss(data: Path, trained: Path, tmp_path: Path) -> None:
    """It changes what is learned and what is recorded, not what validation measures; its runs stay apart."""
    arguments = ("--data", data, "--preset", "nano", *SETTINGS)
    result = invoke(stage2, *arguments, "--out", tmp_path, "--loss", "hybrid-plain")
    assert result.exit_code == 0, result.output
    plain, default = (load_model(run / "dmfnet.safetensors") for run in (tmp_path, trained / "student"))
    assert plain.record["stage2"]["loss"] == {"name": "hybrid-plain", "distance": 0.5, "other rules": 0.15}
    assert default.record["stage2"]["loss"] == {"name": "hybrid", "distance": 0.5, "specks": 16.0, "other rules": 0.15}
    assert weights_hash(plain.state_dict()) != weights_hash(default.state_dict())
    (_, without), (_, with_specks) = (scalars(run, "stage2")["loss"][0] for run in (tmp_path, trained / "student"))
    assert without < with_specks, "of the same weights and crops, in the first step"
    for run, loss, message in (
        (tmp_path, "hybrid", r"other settings (loss: hybrid-plain there, hybrid here)"),
        (trained / "student", "hybrid-plain", r"other settings (loss: hybrid there, hybrid-plain here)"),
    ):
        refused = invoke(stage2, *arguments, "--out", run, "--loss", loss)
        assert refused.exit_code == 2
        assert message in refused.stderr
    unknown = invoke(stage2, *arguments, "--out", tmp_path, "--loss", "l1")
    assert unknown.exit_code == 2
    assert "'l1' is not one of 'hybrid', 'hybrid-plain'" in unknown.stderr


def test_validation_does_not_depend_on_the_loss(data: Path) -> None:
    recipe = Recipe(steps=1, batch=2, crop=64, learning_rate=1e-3)
    run = Run(data, data / "run", recipe, None, None, 10, "float32", False, "cpu")
    with loop.joined(run) as accelerator:
        tasks = [Fusing(run, None, "nano", False, accelerator, loss=name) for name in LOSSES]
        sums = [task.validate(0, 1) for task in tasks]
    assert all(torch.equal(others, sums[0]) for others in sums)


def test_a_wider_preset(data: Path, trained: Path, tmp_path: Path) -> None:
    earlier = trained / "s2" / "dmfnet.safetensors"
    arguments = ("--data", data, "--init", earlier, "--preset", "small", "--unfreeze", "--out", tmp_path, "--batch", 1)
    result = invoke(stage2, *arguments, "--steps", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    model = load_model(tmp_path / "dmfnet.safetensors")
    assert model.config == preset("small")
    assert model.record["stage2"]["init"]["weights"] == weights_hash(load_model(earlier).state_dict())


def test_no_denoiser(data: Path, tmp_path: Path) -> None:
    result = invoke(stage2, "--data", data, "--out", tmp_path)
    assert result.exit_code == 2
    assert "no denoiser: give the result of stage 1" in result.stderr
    assert "a student, such as --preset nano, needs none" in result.stderr


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--batch", "4"), "batch"),
        (("--precision", "bf16"), "precision"),
        (("--preset", "small"), "preset"),
        (("--seed", "1"), "seed"),
    ],
)
def test_other_settings_do_not_resume(data: Path, trained: Path, more: tuple[str, ...], named: str) -> None:
    result = invoke(stage1, "--data", data, "--out", trained / "s1", *SETTINGS, *more)
    assert result.exit_code == 2
    assert f"other settings ({named})" in result.stderr


def test_other_denoiser_or_data_does_not_resume(data: Path, trained: Path, tmp_path: Path) -> None:
    arguments = ("--out", trained / "s2", *SETTINGS, "--denoiser")
    list(write_phantoms(tmp_path, train=1, test=0, size=64))
    result = invoke(stage2, "--data", tmp_path, *arguments, trained / "s1" / "denoiser.safetensors")
    assert "other settings (data)" in result.stderr
    other = ("--data", data, "--out", tmp_path / "s1", *SETTINGS, "--seed", "9")
    assert invoke(stage1, *other).exit_code == 0
    result = invoke(stage2, "--data", data, *arguments, tmp_path / "s1" / "denoiser.safetensors")
    assert "other settings (denoiser)" in result.stderr


def test_stopping_early_is_reported(data: Path, trained: Path, tmp_path: Path) -> None:
    result = invoke(stage1, "--data", data, "--out", tmp_path, *SETTINGS, "--minutes", "1e-9")
    assert "stopped at step 1 of 3" in result.stdout
    file = tmp_path / "denoiser.safetensors"
    assert load_denoiser(file).record["stage1"]["steps_done"] == 1
    result = invoke(stage2, "--data", data, "--out", tmp_path / "s2", "--denoiser", file, *SETTINGS)
    assert result.exit_code == 0
    assert "stopped at step 1 of 3" in result.stderr
    assert load_denoiser(trained / "s1" / "denoiser.safetensors").record["stage1"]["steps_done"] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_the_step(
    number: signal.Signals, data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C or SIGTERM in the second step, the step is finished and saved, and the run can continue."""
    original = CropSampler.pairs
    calls: list[int] = []

    def interrupted(self: CropSampler, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(number)
        return original(self, *arguments)

    monkeypatch.setattr(CropSampler, "pairs", interrupted)
    result = invoke(stage1, "--data", data, "--out", tmp_path, *SETTINGS)
    assert result.exit_code == 1
    assert "holds step 2 of 3; run the same command to continue" in result.stderr
    assert torch.load(tmp_path / "stage1-checkpoint.pt", weights_only=True)["step"] == 2
    assert not (tmp_path / "denoiser.safetensors").exists()
    assert invoke(stage1, "--data", data, "--out", tmp_path, *SETTINGS).exit_code == 0
    resumed, whole = (load_denoiser(f / "denoiser.safetensors").state_dict() for f in (tmp_path, trained / "s1"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_damaged_checkpoint(data: Path, tmp_path: Path) -> None:
    (tmp_path / "stage1-checkpoint.pt").write_bytes(b"damaged")
    result = invoke(stage1, "--data", data, "--out", tmp_path, *SETTINGS)
    assert result.exit_code == 2
    assert "checkpoint.pt: the checkpoint is damaged" in result.stderr


def test_training_learns(data: Path, tmp_path: Path) -> None:
    """After thirty steps, the reconstruction error is well below that of a constant image."""
    result = invoke(
        stage1, "--data", data, "--out", tmp_path, "--batch", "2", "--steps", "30", "--learning-rate", "2e-3",
        "--ema", "0.9",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    model = load_denoiser(tmp_path / "denoiser.safetensors")
    draw = Draw(np.random.default_rng(5), torch.Generator(), slice(None))
    images = CropSampler(load_pairs(data, 64), 64).pairs(4, draw).flatten(0, 1)
    torch.manual_seed(0)
    level = torch.full((len(images), 1), 0.98)
    with torch.no_grad():
        reconstruction = model(0.98 * images + 0.2 * torch.randn_like(images), level)
    assert (reconstruction - images).square().mean() < 0.5 * (images - images.mean()).square().mean()


def test_crop_must_fit(data: Path, tmp_path: Path) -> None:
    assert "is not a multiple of 16" in invoke(stage1, "--data", data, "--out", tmp_path, "--crop", "72").stderr


def test_bad_preset_and_denoiser(data: Path, tmp_path: Path) -> None:
    result = invoke(stage1, "--data", data, "--out", tmp_path, "--preset", "huge")
    assert result.exit_code == 2
    assert "huge" in result.stderr
    result = invoke(stage2, "--data", data, "--out", tmp_path, "--denoiser", tmp_path / "none.safetensors")
    assert result.exit_code == 2
    assert "no such file" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(data: Path, tmp_path: Path) -> None:
    result = invoke(stage1, "--data", data, "--out", tmp_path / "run", "--device", "cuda")
    assert result.exit_code == 2
    assert "sees 0 CUDA GPUs" in result.stderr


def test_diffuse_is_variance_preserving() -> None:
    random = np.random.default_rng(0)
    s, sigma = torch.from_numpy(with_sigma(random_stage1_levels(512, random)))
    noise = torch.from_numpy(random.normal(size=(512, 1, 16, 16))).float()
    measured = diffuse(torch.zeros(512, 1, 16, 16), s, sigma, noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(measured, 1 - s[:, 0].square(), rtol=0.5, atol=1e-6)
    assert s.min() < 0.1
    assert s.max() > 0.95
    assert len(s.unique()) == 512, "each sample has its own timestep"


def test_levels_lie_in_their_intervals() -> None:
    levels = random_levels(FUSION_TIMESTEPS, 1000, np.random.default_rng(0))
    assert levels.shape == (3, 1000)
    assert levels.dtype == np.float64
    sigma = np.sqrt(1 - levels**2)
    assert np.all(np.diff(sigma, axis=0) > 0)
    assert 0.0058 < sigma[0].min() < sigma[0].max() < 0.0075


def test_dropout_and_noise_are_independent() -> None:
    with loop.joined(Run(Path(), Path(), Recipe(1, 2, 64, 1.0), None, None, 1, "float32", False, "cpu")) as accelerator:
        draws = loop._Draws(Recipe(1, 2, 64, 1.0), accelerator)
        noise = draws.at(0).normal(100)
        assert not torch.equal(noise, torch.randn(100))
        assert torch.equal(noise, draws.at(0).normal(100))
        assert not torch.equal(noise, draws.at(1).normal(100))


@pytest.mark.parametrize(("native", "chosen"), [(True, "bf16"), (False, "float32")])
def test_automatic_precision(
    native: bool, chosen: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 is chosen only where it is native: emulated, a step takes many times as long."""
    monkeypatch.setattr("train.options.has_native_bfloat16", lambda _: native)
    arguments = ("--data", data, "--preset", "nano", "--out", tmp_path, "--steps", 1, "--batch", 1, "--device", "cpu")
    assert invoke(stage2, *arguments).exit_code == 0
    assert load_model(tmp_path / "dmfnet.safetensors").record["stage2"]["precision"] == chosen


def test_nonfinite_loss(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Denoising, "loss", lambda _, network, __: network.final_conv.block[3].bias.sum() * np.nan)
    result = invoke(stage1, "--data", data, "--out", tmp_path / "run", *SETTINGS)
    assert result.exit_code == 2
    assert "not finite; start again in another --out" in result.stderr
    assert not (tmp_path / "run" / "stage1-checkpoint.pt").exists()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a checkpoint does not fit on the disk, the previous one stays."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    state = checkpoint.Checkpoint(identity={}, step=1, optimizer={}, parameters=[], average=[], validation=None)
    with pytest.raises(OutputError, match=r"checkpoint\.pt: cannot be written: No space left"):
        checkpoint.write(path, state)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("option", "value"), [("--learning-rate", "nan"), ("--learning-rate", "inf"), ("--minutes", "nan")]
)
def test_numbers_must_be_finite(option: str, value: str, tmp_path: Path) -> None:
    result = invoke(stage1, "--data", tmp_path, "--out", tmp_path / "run", option, value)
    assert result.exit_code == 2
    assert "is not a finite number" in result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("start", ["tiny", "turbo", "nano"])
def test_a_step_does_not_wait_for_the_gpu(start: str, data: Path, tiny_weights: Path) -> None:
    recipe = Recipe(steps=10, batch=2, crop=64, learning_rate=1e-4)
    init = tiny_weights if start == "tiny" else SHIPPED_WEIGHTS.with_name(f"dmfnet-{start}.safetensors")
    run = Run(data, data / "run", recipe, init, None, 10, "bf16", False, "cuda")
    with loop.joined(run) as accelerator:
        tasks: list[Task] = [Fusing(run, None, None, False, accelerator)]
        if start == "tiny":
            tasks.append(Denoising(run, start, accelerator))
        for task in tasks:
            draw = loop._Draws(recipe, accelerator).at
            task.loss(task.network, draw(0)).backward()  # the first call may wait, while algorithms are chosen
            torch.cuda.set_sync_debug_mode("error")
            try:
                task.loss(task.network, draw(1)).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("steps", [3, 30, 1000])
def test_learning_rate(steps: int) -> None:
    """The rate rises to its peak over `warmup` steps, at most a tenth of all, then falls to a hundredth."""
    recipe = Recipe(steps=steps, batch=1, crop=64, learning_rate=1.0, warmup=100)
    rates = [recipe.rate_at(step) for step in range(steps)]
    warmup = min(100, steps // 10)
    assert max(rates) == rates[warmup] == 1.0
    assert np.all(np.diff(rates[:warmup]) > 0)
    assert np.all(np.diff(rates[warmup:]) < 0)
    assert recipe.rate_at(steps) == pytest.approx(0.01)


def test_release(trained: Path, tmp_path: Path) -> None:
    weights, released = trained / "s2" / "dmfnet.safetensors", tmp_path / "dmfnet-own.safetensors"
    result = invoke(release, weights, "-o", released)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{released}: {read_metadata(released)['sha256']}\n"
    assert released.stat().st_size < 0.6 * weights.stat().st_size
    before, after = load_model(weights), load_model(released)
    assert after.record == before.record
    for (name, first), second in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        torch.testing.assert_close(second, first, rtol=1e-3, atol=1e-6, msg=name)
    refused = invoke(release, weights, "-o", tmp_path / "dmfnet.onnx")
    assert refused.exit_code == 2
    assert "name a .safetensors file" in refused.stderr
    refused = invoke(release, weights, "-o", weights)
    assert refused.exit_code == 2
    assert "holds the weights themselves; name another file" in refused.stderr
