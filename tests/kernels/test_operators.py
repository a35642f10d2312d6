"""The torch operators: registered, traceable, and given what the kernels are checked with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch.utils._python_dispatch import TorchDispatchMode

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.config import DMFNET_PRESETS, PRESETS, StudentConfig
from dmfnet_fast.engines import shipped
from dmfnet_fast.model import DMFNet, load_model, network_of, optimize, preset
from dmfnet_fast.precision import FloatPrecision
from export.ops import TRANSLATIONS
from kernels import attention, fusion_gate, resampling
from kernels.cases import ODD_CASES, PREPARED, network_cases, own_cases, student_cases
from kernels.cases.convolution import CONVOLUTION, CONVOLUTION_WITH_STATISTICS, convolve
from kernels.cases.convolution_epilogue import EPILOGUE, EPILOGUE_WITH_STATISTICS
from kernels.cases.record import Case, Draw
from kernels.cases.resampling import resamplings
from kernels.cases.single_channel import FIRST_CONVOLUTION, HEAD, from_interval, from_one
from kernels.convolution import tile_for
from kernels.launch import assumed
from kernels.tiles import ANY, ARCHITECTURES, ConvolutionRule, ConvolutionTile, Tiles, tiles_for
from tests.synthetic_weights import SMALL, model_by_rule, random_inputs

ONE_EACH = {case.operation.name: case for case in ODD_CASES}


def planned_for(architecture: int | None) -> AbstractContextManager[None]:
    return nullcontext() if architecture is None else assumed(architecture)


# Rounding makes 3e-6 and 5e-3.
@pytest.mark.parametrize(("precision", "largest"), [("float32", 2e-5), ("float16", 0.015)])
@pytest.mark.parametrize("name", ["turbo", "paper's"])
def test_network_as_on_a_gpu(name: str, precision: FloatPrecision, largest: float) -> None:
    """By the operators' references, in the ways that are in force, of a size that is no multiple of a tile."""
    model = load_model(shipped()[name]) if name == "turbo" else model_by_rule(SMALL[name])
    given = {name: torch.tensor(array) for name, array in random_inputs(model.config, 2, 80, 112).items()}
    with torch.no_grad(), assumed(90):
        got = optimize(model, precision, kernels=True)(**given)
    with torch.no_grad():
        assert (got - model(**given)).abs().max() <= largest


@pytest.mark.parametrize("case", ONE_EACH.values(), ids=ONE_EACH)
def test_registration(case: Case) -> None:
    """The fake implementation tells the reference's shapes, dtypes and strides; nothing is aliased or changed."""
    for dtype in (torch.float32, torch.float16):
        arguments = case.make(Draw(dtype, "cpu"))
        operator = case.operation.operator
        assert isinstance(operator, CustomOpDef)
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("case", ONE_EACH.values(), ids=ONE_EACH)
def test_the_plan_returns_what_the_fake_tells(case: Case) -> None:
    arguments = case.make(Draw(torch.float16, "meta"))
    planned, _ = case.operation.plan(*arguments)
    told = case.operation.operator(*arguments)
    told = told if isinstance(told, tuple) else (told,)
    assert [(t.shape, t.dtype, t.stride()) for t in planned] == [(t.shape, t.dtype, t.stride()) for t in told]


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 64, 64, generator=generator)
    return image, image.flip(3), torch.randn(3, 2, 64, 64, generator=generator)


@pytest.mark.parametrize("architecture", [None, 80, 90])
def test_torch_compile_does_not_break_the_graph(architecture: int | None, inputs: tuple[Tensor, ...]) -> None:
    net = optimize(DMFNet(DMFNET_PRESETS["tiny"]), "float32" if architecture is None else "float16", kernels=True)
    with torch.no_grad(), planned_for(architecture):
        with Calls() as calls:
            expected = net(*inputs)
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert torch.equal(compiled(*inputs), expected)
    torch.compiler.reset()
    called = {name for name, *_ in calls.seen}
    assert (HEAD.name in called) == (architecture is not None)
    assert (CONVOLUTION_WITH_STATISTICS.name in called) == (architecture == 90)


def test_torch_export(inputs: tuple[Tensor, ...]) -> None:
    """A graph for others to run has none of the operators that are chosen for a GPU."""
    net = optimize(DMFNet(DMFNET_PRESETS["tiny"]), kernels=True)
    with torch.no_grad():
        program = torch.export.export(net, inputs)
        names = {str(node.target) for node in program.graph.nodes if "dmfnet" in str(node.target)}
        assert {name.split(".")[1] for name in names} == set(TRANSLATIONS), "those that ONNX graphs have"
        assert torch.allclose(program.module()(*inputs), net(*inputs), atol=1e-6)


class Calls(TorchDispatchMode):
    """The calls of our operators, by what decides how they are compiled and launched."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[Any, ...]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = function.name().partition("::")
        if namespace == "dmfnet":
            self.seen.add((name, *map(described, args)))
        return function(*args, **(kwargs or {}))


def described(argument: Any) -> Any:
    return (tuple(argument.shape), argument.dtype) if isinstance(argument, Tensor) else argument


def calls_of(name: str, architecture: int | None, pairs: int, height: int, width: int) -> set[tuple[Any, ...]]:
    """What the network called `name` calls in float16."""
    # The meta device has no autocast.
    no_autocast = mock.patch.object(torch, "autocast", return_value=nullcontext())
    with torch.device("meta"), torch.no_grad(), no_autocast, planned_for(architecture):
        net = optimize(network_of(preset(name)), "float16", kernels=True)
        shapes = interface_of(preset(name).to_dict()).shapes(pairs, height, width)
        inputs = {name: torch.empty(shape) for name, shape in shapes.items()}
        with Calls() as calls:
            net(**inputs)
    return calls.seen


def as_calls(cases: Iterator[Case]) -> set[tuple[Any, ...]]:
    return {(case.operation.name, *map(described, case.make(Draw(torch.float16, "meta")))) for case in cases}


@pytest.mark.parametrize("name", ["tiny", "base", "turbo"])
@pytest.mark.parametrize("pairs", [1, 2])
def test_the_cases_are_what_the_network_calls(name: str, pairs: int) -> None:
    config = DMFNET_PRESETS[name]
    seen = calls_of(name, None, pairs, 64, 128)
    known = as_calls(
        network_cases(
            config.channels, config.norm_groups, 64, 128, pairs, steps=len(config.timesteps), noise=config.noise
        )
    )
    assert seen - known == set(), "a call without a case"
    assert known - seen == set(), "a case that the network does not have"


# The largest has no convolutions of ours with statistics where it is finest, nor the first.
@pytest.mark.parametrize(("pairs", "height", "width"), [(1, 256, 256), (2, 64, 128), (1, 512, 256)])
@pytest.mark.parametrize("name", ["tiny", "base", "turbo"])
@pytest.mark.parametrize("architecture", [80, 90])
def test_the_cases_are_what_the_network_calls_on_a_gpu(
    architecture: int, name: str, pairs: int, height: int, width: int
) -> None:
    config = DMFNET_PRESETS[name]
    sizes = config.channels, config.norm_groups, height, width
    steps = len(config.timesteps)
    with assumed(architecture):
        own = as_calls(own_cases(*sizes, torch.float16, pairs, steps, tanh=not config.interval))
    others = as_calls(network_cases(*sizes, pairs, steps, config.noise))
    seen = calls_of(name, architecture, pairs, height, width)
    assert seen - own - others == set(), "a call without a case"
    assert own - seen == set(), "a case that the network does not have"
    called = {name for name, *_ in seen}
    # Every convolution without statistics, all of which are the fusion's.
    assert (EPILOGUE.name in called) == (architecture == 80)
    assert (FIRST_CONVOLUTION.name in called) == (height * width <= 256 * 256)


@pytest.mark.parametrize("name", ["base", "turbo"])
def test_ways_that_were_not_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of them, the epilogues of cuDNN's convolutions and cuBLAS's products are gone, and no call is new."""
    config = DMFNET_PRESETS[name]
    images = 2 * len(config.timesteps)
    before = calls_of(name, 90, 1, 256, 256)
    monkeypatch.setitem(ARCHITECTURES, 90, replace(ARCHITECTURES[90], **PREPARED))
    seen = calls_of(name, 90, 1, 256, 256)
    resampled = as_calls(resamplings(config.channels, images, 256, 256))
    coarsest = images, 2 * config.channels, 256 // 16, 256 // 16
    products = as_calls(
        iter(
            (
                convolve(coarsest[0], coarsest[1], 3 * coarsest[1], *coarsest[2:], size=1, bias=False),
                convolve(*coarsest[:2], coarsest[1], *coarsest[2:], size=1, residual=True, with_statistics=True),
                *(convolve(1, config.channels, config.channels, side, side, size=1) for side in (16, 32, 64)),
            )
        )
    )
    sources, gone = set(), {EPILOGUE_WITH_STATISTICS.name}
    if not config.noise:
        sources = as_calls(iter((from_one(1, config.channels, 256, 256, both=True), from_interval(1, 16, 256, 256))))
        gone.add(FIRST_CONVOLUTION.name)
    assert seen - before == resampled | products | sources
    assert {name for name, *_ in before - seen} == gone
    assert EPILOGUE_WITH_STATISTICS.name not in {name for name, *_ in seen}


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("pairs", [1, 3])
def test_the_cases_are_what_a_student_calls(architecture: int, pairs: int) -> None:
    config = PRESETS["nano"]
    assert isinstance(config, StudentConfig)
    with assumed(architecture):
        known = as_calls(student_cases(config.channels, 64, 128, torch.float16, pairs, config.factor))
    seen = calls_of("nano", architecture, pairs, 64, 128)
    assert seen == known
    assert {name for name, *_ in seen} >= {(EPILOGUE if architecture == 80 else CONVOLUTION).name}
    assert calls_of("nano", None, pairs, 64, 128) == set()


def features(n: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(n, channels, height, width, dtype=dtype, device="meta")


def test_whose_convolution_it_is() -> None:
    """Ours in half precision, for at least 16 channels, where a rule was measured, and on a GPU."""
    weight = features(128, 128, 3, 3)
    x = features(6, 128, 256, 256)
    assert tile_for(x, weight, True) is None, "a graph for others"
    with assumed(80):
        assert tile_for(x, weight, True) is None, "not measured"
    with assumed(90):
        assert tile_for(x, weight, True) == ARCHITECTURES[90].convolutions[-1].tile
        assert tile_for(x.bfloat16(), weight, True) is not None
        assert tile_for(x.float(), weight.float(), True) is None
        assert tile_for(features(6, 24, 256, 256), features(128, 24, 3, 3), True) is None
        # Statistics come in parts of up to 1/512 of an image, which a tile has to hold.
        assert tile_for(features(6, 128, 512, 512), weight, True) is None
        assert tile_for(features(6, 128, 512, 512), weight, False) is not None
        # The copy engine's tiles are whole rows, or whole parts of one.
        assert tile_for(features(6, 128, 240, 256), weight, True) == ARCHITECTURES[90].convolutions[-1].tile
        assert tile_for(features(6, 128, 256, 240), weight, True) is None


def test_the_first_rule_that_holds() -> None:
    small, narrow, any_other = (ConvolutionTile(pixels) for pixels in (16, 32, 64))
    rules = ConvolutionRule(32, 64, 100, small), ConvolutionRule(32, 32, ANY, narrow)
    tiles = Tiles(convolutions=rules)
    assert list(tiles.convolution(32, 64, 100)) == [small]
    assert list(tiles.convolution(32, 32, 100)) == [small, narrow]
    assert list(tiles.convolution(32, 32, 101)) == [narrow]
    assert list(tiles.convolution(32, 64, 101)) == []
    assert list(tiles.convolution(33, 32, 100)) == []
    more = Tiles(convolutions=(*rules, ConvolutionRule(ANY, ANY, ANY, any_other)))
    assert list(more.convolution(33, 32, 100)) == [any_other]


def test_no_rule_is_idle() -> None:
    """Each is there for convolutions of base, turbo or nano at 256x256, or where rows are not whole tiles."""
    used = set()
    with assumed(90):
        for channels, groups, steps, width in ((128, 32, 3, 256), (128, 32, 3, 208), (32, 8, 1, 256)):
            used |= {chosen(case) for case in own_cases(channels, groups, 256, width, torch.float16, steps=steps)}
        used |= {chosen(case) for case in student_cases(32, 256, 256, torch.float16)}
    rules = ARCHITECTURES[90].convolutions
    assert used - {None} == {rule.tile for rule in rules}
    assert rules[-1] == ConvolutionRule(ANY, ANY, ANY, rules[-1].tile), "none is left to cuDNN for its size"


def chosen(case: Case) -> ConvolutionTile | None:
    if case.operation not in (CONVOLUTION, CONVOLUTION_WITH_STATISTICS):
        return None
    x, weight, *_ = case.make(Draw(torch.float16, "meta"))
    return tile_for(x, weight, case.operation is CONVOLUTION_WITH_STATISTICS)


def test_the_tile_is_what_is_launched() -> None:
    case = convolve(6, 128, 128, 64, 64, with_statistics=True)
    with assumed(90):
        (launch,) = case.operation.plan(*case.make(Draw(torch.float16, "meta")))[1]
    tile = next(tiles_for(90).convolution(128, 128, 6 * 64 * 64))
    constants = launch.constants
    assert (constants["PIXELS"], constants["CHANNELS"], constants["INNER"]) == (tile.pixels, tile.channels, tile.inner)
    assert (launch.warps, launch.stages) == (tile.warps, tile.stages)
    assert len(launch.tensors) == 5, "input, weight, bias, result and statistics, of which two are described"


def test_the_shortcut_with_fewer_channels_a_step_comes_first() -> None:
    """Triton 3.6 miscompiles the other order."""
    for more, last in ((64, 32), (32, 64), (64, 64), (96, 64), (64, 0)):
        case = convolve(2, 64, 64, 16, 16, more=more, last=last, with_statistics=True)
        tile = ConvolutionTile(128, 64, 64, 4, 3)
        (launch,) = case.operation.plan(*case.make(Draw(torch.float16, "meta")), tile=tile)[1]
        sizes = [launch.constants[name] for name in ("MORE", "LAST", "INNER_MORE", "INNER_LAST")]
        assert sorted(sizes[:2]) == sorted((more, last))
        assert last == 0 or sizes[2] <= sizes[3]
        for name, channels in zip(("more", "last"), sizes, strict=False):
            for argument in (launch.arguments[name], launch.arguments[f"{name}_weight"]):
                assert (argument.shape[1] if isinstance(argument, torch.Tensor) else 0) == channels


def test_errors() -> None:
    small = torch.empty(1, 16, 3, 8, device="meta")
    with pytest.raises(ValueError, match=r"fusion_gate of 3x8 pixels: the reflected borders need at least 4"):
        fusion_gate.plan(small, small, *[small] * 8)
    x = torch.empty(1, 16, 5, 8, device="meta")
    with pytest.raises(ValueError, match=r"resampling of 5x8 pixels: tiles of 64 pixels do not fit"):
        resampling.upsampling_plan(x, x, x)
    with pytest.raises(ValueError, match=r"attention over 288 channels: the kernel takes up to 256"):
        attention.plan(torch.empty(1, 864, 4, 4, device="meta"))
    with pytest.raises(ValueError, match=r"compute capability 7.5: the kernels need 8.0 or later"):
        tiles_for(75)


def test_tiles_of_architectures_between() -> None:
    assert tiles_for(100) is ARCHITECTURES[90]
    assert tiles_for(121) is ARCHITECTURES[120]
