"""The torch operators: registered, traceable, and given what the kernels are checked with."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmfnet_fast.config import DMFNET_PRESETS
from dmfnet_fast.fusion_file import interface_of
from dmfnet_fast.model import DMFNet, optimize
from kernels import attention, fusion_gate
from kernels.cases import ODD_CASES, OPERATIONS, Case, Draw, network_cases
from kernels.tiles import ARCHITECTURES, tiles_for

ONE_EACH = {case.operation.name: case for case in ODD_CASES}


@pytest.mark.parametrize("case", ONE_EACH.values(), ids=ONE_EACH)
def test_registration(case: Case) -> None:
    """The fake implementation tells the reference's shapes, dtypes and strides; nothing is aliased or changed."""
    for dtype in (torch.float32, torch.float16):
        arguments = case.make(Draw(dtype, "cpu"))
        torch.library.opcheck(case.operation.operator, arguments)


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


def test_torch_compile_does_not_break_the_graph(inputs: tuple[Tensor, ...]) -> None:
    net = optimize(DMFNet(DMFNET_PRESETS["tiny"]), kernels=True)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert torch.equal(compiled(*inputs), net(*inputs))
    torch.compiler.reset()


def test_torch_export(inputs: tuple[Tensor, ...]) -> None:
    net = optimize(DMFNet(DMFNET_PRESETS["tiny"]), kernels=True)
    with torch.no_grad():
        program = torch.export.export(net, inputs)
        names = {str(node.target) for node in program.graph.nodes if "dmfnet" in str(node.target)}
        assert {name.split(".")[1] for name in names} == {operation.name for operation in OPERATIONS} - {
            "channel_statistics"
        }
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


@pytest.mark.parametrize("name", ["tiny", "base", "turbo"])
@pytest.mark.parametrize("pairs", [1, 2])
def test_the_cases_are_what_the_network_calls(name: str, pairs: int) -> None:
    config = DMFNET_PRESETS[name]
    # The meta device has no autocast.
    no_autocast = mock.patch.object(torch, "autocast", return_value=nullcontext())
    with torch.device("meta"), torch.no_grad(), no_autocast:
        net = optimize(DMFNet(config), "float16", kernels=True)
        shapes = interface_of(config.to_dict()).shapes(pairs, 64, 128)
        inputs = {name: torch.empty(shape) for name, shape in shapes.items()}
        with Calls() as calls:
            net(**inputs)
    cases = network_cases(
        config.channels, config.norm_groups, 64, 128, pairs, steps=len(config.timesteps), noise=config.noise
    )
    known = {(case.operation.name, *map(described, case.make(Draw(torch.float16, "meta")))) for case in cases}
    assert calls.seen - known == set(), "a call without a case"
    assert known - calls.seen == set(), "a case that the network does not have"


def test_errors() -> None:
    small = torch.empty(1, 16, 3, 8, device="meta")
    with pytest.raises(ValueError, match=r"fusion_gate of 3x8 pixels: the reflected borders need at least 4"):
        fusion_gate.plan(small, small, *[small] * 8)
    with pytest.raises(ValueError, match=r"attention over 288 channels: the kernel takes up to 256"):
        attention.plan(torch.empty(1, 864, 4, 4, device="meta"))
    with pytest.raises(ValueError, match=r"compute capability 7.5: the kernels need 8.0 or later"):
        tiles_for(75)


def test_tiles_of_architectures_between() -> None:
    assert tiles_for(100) is ARCHITECTURES[90]
    assert tiles_for(121) is ARCHITECTURES[120]
