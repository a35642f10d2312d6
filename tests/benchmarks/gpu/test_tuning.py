"""The tuning script's variants and rules, planned without a GPU."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import tuning as gpu_tuning
from benchmarks.gpu.machine import Machine
from dmfnet_fast.model import PRESETS
from kernels import convolution, launch
from kernels.cases.convolution import convolve
from kernels.cases.record import Draw
from kernels.cases.resampling import resample
from kernels.resampling import by_phase
from kernels.tiles import ANY, ARCHITECTURES, ConvolutionRule, ConvolutionTile, Tiles

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def variants() -> list[gpu_tuning.Variant]:
    return gpu_tuning.variants("")


def test_every_variant_is_launched_as_planned(variants: list[gpu_tuning.Variant]) -> None:
    """With its own tile; no other variant of the same case and field launches the same."""
    launched = set()
    for variant in variants:
        launches = gpu_tuning.planned(variant)
        assert launches is not None
        launched.add((str(variant.case), variant.field, launches))
        if variant.field == "convolutions":
            (rule,) = variant.tile
            ((signature, _),) = launches
            assert isinstance(rule.tile, ConvolutionTile)
            constants = dict(signature.constants)
            assert constants["PIXELS"] == rule.tile.pixels
            assert (signature.warps, signature.stages) == (rule.tile.warps, rule.tile.stages)
            assert constants.get("ROWS", 0) == rule.tile.rows
            assert ("described" in signature.kernel.__name__) <= rule.tile.described
        elif variant.field in gpu_tuning.RESAMPLINGS:
            (rule,) = variant.tile
            ((signature, _),) = launches
            assert dict(signature.constants)["PIXELS"] == rule.tile.pixels
            assert dict(signature.constants)["UP"] == (variant.field == "upsamplings")
            assert ("described" in signature.kernel.__name__) == rule.tile.described
        elif variant.field == "gates":
            assert len(launches) == (4 if not variant.tile else 2 if variant.tile[0].folded else 3)
    assert len(launched) == len(variants)
    assert {variant.field for variant in variants} <= set(vars(Tiles()))


def test_current_tiles_are_among_the_variants(variants: list[gpu_tuning.Variant]) -> None:
    tiles = ARCHITECTURES[90]
    tried = {variant.tile[0].tile for variant in variants if variant.field == "convolutions"}
    assert {rule.tile for rule in tiles.convolutions} <= tried
    for field in ("gates", "epilogue", "normalize", "pool", "spatial", "gate", "upsample", "first", "head"):
        assert getattr(tiles, field) in {variant.tile for variant in variants if variant.field == field}, field


def test_tiles_without_a_whole_part_are_left_out() -> None:
    """Another tile would be launched instead of them."""
    fine = convolve(2, 32, 32, 256, 256, with_statistics=True)  # parts of 128 pixels
    for pixels, used in ((64, False), (128, True)):
        rules = (ConvolutionRule(ANY, ANY, ANY, ConvolutionTile(pixels)),)
        planned = gpu_tuning.planned(gpu_tuning.Variant(fine, "convolutions", rules))
        assert (planned is not None) == used


def test_tiles_are_restored_after_a_trial(variants: list[gpu_tuning.Variant]) -> None:
    before = dict(ARCHITECTURES)
    variant = variants[-1]

    def fail() -> None:
        with gpu_tuning.tried(variant):
            assert {getattr(tiles, variant.field) for tiles in ARCHITECTURES.values()} == {variant.tile}
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert before == ARCHITECTURES


def test_only(variants: list[gpu_tuning.Variant]) -> None:
    fewer = gpu_tuning.variants("x16x16")
    assert 0 < len(fewer) < len(variants)
    assert all("x16x16" in str(variant.case) for variant in fewer)


def test_settings() -> None:
    """Each network's start with those in force; each other one changes something."""
    present = ARCHITECTURES[90]
    found = gpu_tuning.settings("")
    assert pickle.loads(pickle.dumps(found)) == found, "other processes compile them"
    assert len({str(one) for one in found}) == len(found)
    assert {one.batch for one in gpu_tuning.settings("turbo:")} == {1}
    for network in ("base", "turbo", "nano"):
        assert network in PRESETS
        own = {one.name: one.fields for one in found if (one.network, one.batch) == (network, 1)}
        assert list(own)[:2] == ["in force", "cuDNN"]
        changed = {name: replace(present, **fields) for name, fields in own.items()}
        assert changed.pop("in force") == present
        assert changed.pop("cuDNN").convolutions == ()
        assert changed.pop("two streams", present) == present
        for name, tiles in changed.items():
            assert tiles != present, name
            bounds = [(rule.inputs, rule.outputs) for rule in tiles.convolutions]
            if "rows" not in name:
                assert bounds == [(rule.inputs, rule.outputs) for rule in present.convolutions], name
        assert len({str(tiles) for tiles in changed.values()}) == len(changed)


def test_settings_by_rows() -> None:
    """Of turbo, all narrow convolutions of maps that are large enough, and nothing else."""
    only = {one.name: one for one in gpu_tuning.settings("by 8 rows") if (one.network, one.batch) == ("turbo", 1)}
    assert list(only) == ["in force", "narrow: by 8 rows from 2^14 pixels", "narrow: by 8 rows from 2^17 pixels"]
    draw = Draw(torch.float16, "meta")
    for name, fine, coarse in (("in force", 0, 0), *((name, 8, 8 * ("14" in name)) for name in list(only)[1:])):
        with gpu_tuning.changed(**only[name].fields), launch.assumed(90):
            for inputs, outputs, side, size, rows in (
                (32, 32, 256, 3, fine),
                (64, 32, 256, 3, fine),
                (32, 32, 128, 3, coarse),
                (32, 32, 64, 3, 0),
                (32, 32, 256, 1, 0),
                (128, 32, 256, 3, 0),
                (32, 64, 256, 3, 0),
            ):
                x, weight, *_ = convolve(2, inputs, outputs, side, side, size).make(draw)
                tile = convolution.tile_for(x, weight, statistics=True)
                assert tile is not None
                assert tile.rows == rows, (name, inputs, outputs, side, size)


@pytest.mark.parametrize("with_statistics", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_cudnn_computes_the_same(size: int, with_statistics: bool) -> None:
    case = convolve(2, 16, 24, 5, 7, size=size, residual=True, relu=True, with_statistics=with_statistics)
    arguments = case.make(Draw(torch.float32, "cpu"))
    call = gpu_tuning._by_cudnn_with_statistics if with_statistics else gpu_tuning._by_cudnn
    torch.testing.assert_close(call(*arguments), case.operation.reference(*arguments))


@pytest.mark.parametrize("up", [False, True])
def test_cudnn_resamples_as_much(up: bool) -> None:
    """The same, but for the order of a transposed convolution's weights, which have the same sizes."""
    case = resample(2, 16, 16, 8, 8, up)
    variant = gpu_tuning.Variant(case, gpu_tuning.RESAMPLINGS[up], ())
    call = gpu_tuning._cudnn_call(variant)
    assert call is not None
    x, weight, bias = case.make(Draw(torch.float32, "cpu"))
    kernel = torch.randn(16, 16, 4, 4) if up else weight
    # In the order of memory in which `call` takes the kernel for channels-last.
    given = kernel.permute(0, 2, 3, 1).reshape(weight.shape) if up else weight
    wanted = case.operation.reference(x, by_phase(kernel) if up else weight, bias)
    got = call(x, given, bias)
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1][:, :, 0].mean(1), wanted[1][:, :, 0].mean(1))  # of other parts of the same pixels


class FakeMachine(Machine):
    """Only frees memory."""

    def free(self) -> tuple[int, int]:
        return 0, 0


def test_networks_that_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the file has what was measured before, should the run be stopped."""
    output = tmp_path / "tuning.json"
    written = []

    def fused(_: object, setting: gpu_tuning.Setting) -> dict[str, float]:
        written.append(len(json.loads(output.read_text())["networks"]) if output.exists() else 0)
        if setting.two_streams:
            raise RuntimeError("capture")
        return {"ms": 1.0}

    monkeypatch.setattr(gpu_tuning, "_fused", fused)
    monkeypatch.setattr(gpu_tuning, "environment", lambda _: {})
    monkeypatch.setattr(gpu_tuning, "run_in_processes", lambda _, todo: {"jobs": len(todo)})
    gpu_tuning._time_networks(FakeMachine(torch.device("cpu"), False, 0), output, "turbo: two streams")
    content = json.loads(output.read_text())
    assert written == [0, 1]
    assert content["compiled"] == {"jobs": 2}
    assert content["networks"] == [
        {"network": "turbo", "batch": 1, "rules": "in force", "ms": 1.0},
        {"network": "turbo", "batch": 1, "rules": "two streams", "failed": "RuntimeError: capture"},
    ]


def test_numbers() -> None:
    by_rule = {variant.field: variant for variant in gpu_tuning.variants("fusion_gate 1x32x64x64")}
    assert gpu_tuning._numbers(by_rule["gates"].tile) == [False, 128, 64, 128, 8, 16, 64, 4]
    assert gpu_tuning._numbers(()) == []
    assert gpu_tuning._numbers(by_rule["pool"].tile) == [16, 128, 8]


def test_summary() -> None:
    rows = [{"case": "a", "field": "gate", "tile": [n], "us": us} for n, us in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0))]
    rows.append({"case": "a", "field": "gate", "tile": [5], "failed": "OutOfResources"})
    rows.append({"case": "b", "field": "convolutions", "tile": "cuDNN", "us": 7.0})
    assert list(gpu_tuning.summary(rows)) == [
        "gate | a | [2] 1.0, [3] 2.0, [1] 3.0 | 1 failed",
        "convolutions | b | cuDNN 7.0",
    ]


def test_without_a_gpu(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu.tuning", "-o", str(tmp_path / "tuning.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: this needs a GPU\n"
    assert not list(tmp_path.iterdir())
