"""Every kernel against its reference: on a GPU, or in Triton's interpreter, for which this runs in its own process.

Run by test_interpreted.py; on a GPU: `pytest tests/kernels/interpreted.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from triton.runtime import interpreter

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.engines import shipped
from dmfnet_fast.engines.arithmetic import arithmetic
from dmfnet_fast.engines.pixels import PixelsToPixels
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.model import Network, load_model, optimize
from dmfnet_fast.precision import FloatPrecision
from kernels import convolution, convolution_epilogue, launch
from kernels.cases import ODD_CASES, OPERATIONS, PREPARED_CASES, SMALL_CASES, needs_tma
from kernels.cases.attention import ATTENTION
from kernels.cases.convolution import by_tile, convolve
from kernels.cases.convolution_epilogue import epilogue
from kernels.cases.diffuse import DIFFUSE
from kernels.cases.fusion_gate import FUSION_GATE, LARGER, gate, rule
from kernels.cases.fusion_gate import by_rule as gate_by_rule
from kernels.cases.group_norm_silu import GROUP_NORM_SILU, norm
from kernels.cases.record import Case, Draw, Operation
from kernels.cases.resampling import resample
from kernels.cases.single_channel import from_one, to_one
from kernels.cases.upsample_add import upsample
from kernels.checks import TOLERANCES, Guarded, error, expected, tolerance, worst
from kernels.convolution import convolution_by_rows_kernel, convolution_kernel, described_convolution_kernel
from kernels.fusion_gate import folded_gate_kernel
from kernels.launch import Launch, assumed
from kernels.resampling import resampling_kernel
from kernels.tiles import ANY, ARCHITECTURES, ConvolutionRule, ConvolutionTile, Tile, Tiles
from kernels.upsample_add import reference as upsample_reference
from tests.engines.test_pixels import images
from tests.synthetic_weights import SMALL, model_by_rule, random_inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def skip_wrong_product(operation: Operation, dtype: torch.dtype) -> None:
    if operation.multiplies_matrices and dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("the interpreter multiplies bfloat16 matrices wrongly")


def skip_without_copy_engine(case: Case | None = None) -> None:
    """Unless `case` can do without."""
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0) and (case is None or needs_tma(case)):
        pytest.skip("this GPU has no copy engine")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*ODD_CASES, *PREPARED_CASES], ids=str)
def test_reference(case: Case, dtype: torch.dtype) -> None:
    skip_wrong_product(case.operation, dtype)
    skip_without_copy_engine(case)
    assert worst(case.operation, case.make(Draw(dtype, DEVICE))) <= 1


def test_every_operation_has_a_case() -> None:
    assert {case.operation for case in ODD_CASES} == {case.operation for case in SMALL_CASES} == set(OPERATIONS)


def planes(x: Any) -> Any:
    """`x` with the pixels of a channel beside each other."""
    return x.contiguous() if isinstance(x, Tensor) else x


def window(x: Any) -> Any:
    """`x` inside of something larger."""
    if not isinstance(x, Tensor) or x.dim() < 4:
        return x
    larger = torch.full([length + 3 for length in x.shape], float("nan"), dtype=x.dtype, device=x.device)
    view = larger[tuple(slice(1, 1 + length) for length in x.shape)]
    return view.copy_(x)


def odd_stride(x: Any) -> Any:
    """A single image, whose own stride says nothing."""
    if not isinstance(x, Tensor) or x.dim() < 4 or len(x) > 1:
        return x
    return x.as_strided(x.shape, (1, *x.stride()[1:]))


@pytest.mark.parametrize("case", [*SMALL_CASES, *PREPARED_CASES], ids=str)
def test_every_memory_layout(case: Case) -> None:
    skip_without_copy_engine(case)
    arguments = case.make(Draw(torch.float32, DEVICE))
    wanted = expected(case.operation, arguments)
    for layout in (planes, window):
        results = launch.run(case.operation.plan(*map(layout, arguments)))
        for got, reference in zip(results, wanted, strict=True):
            assert error(got, reference) <= TOLERANCES[torch.float32]


def one(value: float) -> Callable[[Tensor], Tensor]:
    def change(values: Tensor) -> Tensor:
        changed = values.clone()
        changed[0, -1, 2, 3] = value
        return changed

    return change


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "all equal": lambda values: torch.full_like(values, 3.0),
    "all 1e4": lambda values: torch.full_like(values, 1e4),
    "about 1e4": lambda values: 1e4 + values,
    "times 1e4": lambda values: 1e4 * values,
    "all zero": torch.zeros_like,
    "one inf": one(float("inf")),
    "one nan": one(float("nan")),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize(
    "case",
    [*(case for case in SMALL_CASES if case.operation is not DIFFUSE), gate_by_rule(gate(2, 32, 5, 7), LARGER)],
    ids=str,
)
def test_extremes(case: Case, extreme: str, dtype: torch.dtype) -> None:
    arguments = list(case.make(Draw(dtype, DEVICE)))
    arguments[0] = EXTREMES[extreme](arguments[0])
    looser = 1
    # Deviations from a mean of 1e4 are known no better than float32 knows 1e4, and are multiplied by up to 316. Where
    # everything is 1e4 there are none, unless a noise bias makes them.
    biased = case.operation is GROUP_NORM_SILU and arguments[4] is not None
    deviations = case.operation is GROUP_NORM_SILU or case.operation.gives_statistics
    if dtype == torch.float32 and ((extreme == "about 1e4" and deviations) or (extreme == "all 1e4" and biased)):
        looser = 1000
    # A softmax of products of 1e8 doubles any rounding of them many times.
    if case.operation is ATTENTION and extreme == "times 1e4":
        looser = 100
    assert worst(case.operation, arguments) <= looser


@pytest.mark.parametrize("case", [case for case in SMALL_CASES if case.operation is not DIFFUSE], ids=str)
def test_denormals(case: Case) -> None:
    """Of float16, which float32 holds exactly; GPUs take those of float32 for zero."""
    arguments = [
        value * 1e-6 if isinstance(value, Tensor) and value.dim() == 4 else value
        for value in case.make(Draw(torch.float16, DEVICE))
    ]
    guarded = Guarded()
    with guarded.allocations():
        results = launch.run(case.operation.plan(*arguments))
    for got, wanted in zip(results, expected(case.operation, arguments), strict=True):
        assert torch.isfinite(got).all()
        # Half of float16's smallest number, and what rounding adds to larger results.
        assert (got.double() - wanted).abs().max() <= 2**-25 + 5e-4 * wanted.abs().max()


def test_maximum_of_what_is_negative() -> None:
    """With fewer channels than the tile has: those that are not there do not count as zero."""
    arguments = gate(1, 72, 5, 7).make(Draw(torch.float32, DEVICE, shift=-5.0))
    assert worst(FUSION_GATE, arguments) <= 1


def test_many_parts() -> None:
    """More pixels than parts of 32: the parts grow, and the last is not full."""
    case = norm(1, 16, 0, 96, 97, 4, rows=1)
    assert worst(case.operation, case.make(Draw(torch.float32, DEVICE))) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [0, 3])
def test_few_parts_are_merged_by_the_last_launch(rows: int, dtype: torch.dtype) -> None:
    """Or, all the same, by one of their own: as plugins have it."""
    case = norm(3, 32, 16, 9, 24, 3, rows=rows, known=True)
    arguments = case.make(Draw(dtype, DEVICE))
    (wanted,) = expected(case.operation, arguments)
    for fold, number in ((True, 1), (False, 2)):
        plan = case.operation.plan(*arguments, fold=fold)
        assert len(plan[1]) == number
        assert error(launch.run(plan)[0], wanted) <= tolerance(dtype)


@contextmanager
def convolved_by(tile: ConvolutionTile, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Meanwhile every convolution of ours has this tile."""
    for number, tiles in ARCHITECTURES.items():
        rules = (ConvolutionRule(ANY, ANY, ANY, tile),)
        monkeypatch.setitem(ARCHITECTURES, number, replace(tiles, convolutions=rules))
    with assumed(90):
        yield


# With tiles of 32 pixels, and of 64, which hold two parts of statistics.
IN_WHOLE_ROWS = (
    (32, convolve(2, 32, 40, 8, 16, relu=True)),  # two rows a tile
    (32, convolve(1, 48, 33, 3, 64, relu=True, residual=True, with_statistics=True)),  # half a row
    (32, convolve(3, 16, 72, 5, 32, more=16, last=48, residual=True, with_statistics=True)),  # a row
    (32, convolve(2, 64, 16, 4, 8, size=1, bias=False)),  # an image
    (64, convolve(2, 32, 32, 6, 32, more=32, bias=False, with_statistics=True)),
    (64, convolve(1, 32, 4, 2, 256, residual=True)),
)
NOT_IN_WHOLE_ROWS = (
    convolve(2, 32, 40, 7, 9, relu=True),
    convolve(2, 32, 40, 5, 16, with_statistics=True),  # half a tile is left over
    convolve(2, 32, 40, 4, 24, more=16, residual=True, with_statistics=True),  # rows that cross tiles
)


@pytest.mark.parametrize(("pixels", "case"), IN_WHOLE_ROWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_described(pixels: int, case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_wrong_product(case.operation, dtype)
    skip_without_copy_engine()
    arguments = case.make(Draw(dtype, DEVICE))
    with convolved_by(ConvolutionTile(pixels, 32, 32, 4, 3, described=True), monkeypatch):
        _, (call,) = case.operation.plan(*arguments)
        assert call.kernel is described_convolution_kernel
        assert call.constants["PIXELS"] == pixels
        assert worst(case.operation, arguments) <= 1


BY_ROWS = (
    convolve(2, 32, 40, 5, 64, relu=True),  # the last strip is not full
    convolve(1, 48, 33, 3, 64, relu=True, residual=True, with_statistics=True),
    convolve(3, 16, 16, 6, 32, more=16, last=48, residual=True, with_statistics=True),
    convolve(2, 32, 16, 1, 32, bias=False),
)


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize("case", BY_ROWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_by_rows(case: Case, dtype: torch.dtype, described: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_wrong_product(case.operation, dtype)
    if described:
        skip_without_copy_engine()
    arguments = case.make(Draw(dtype, DEVICE))
    with convolved_by(ConvolutionTile(32, 32, 32, 4, 2, described, rows=2), monkeypatch):
        _, (call,) = case.operation.plan(*arguments)
        assert call.kernel is convolution_by_rows_kernel
        assert call.constants["DESCRIBED"] == described
        assert worst(case.operation, arguments) <= 1


NOT_BY_ROWS = (
    convolve(2, 32, 40, 4, 32, size=1),
    convolve(2, 32, 40, 4, 48, with_statistics=True),  # a block is left over
    convolve(1, 16, 16, 128, 256, with_statistics=True),  # parts of 64 pixels
)


@pytest.mark.parametrize("case", NOT_BY_ROWS, ids=str)
def test_what_cannot_be_by_rows(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = ConvolutionTile(32, 32, 32, 4, 2, rows=2)
    arguments = case.make(Draw(torch.float16, "meta"))
    with convolved_by(tile, monkeypatch):
        assert convolution.tile_for(arguments[0], arguments[1], case.operation.gives_statistics) is None
        (call,) = case.operation.plan(*arguments, tile=tile)[1]
        assert call.kernel is convolution_kernel


@pytest.mark.parametrize("extreme", ["all 1e4", "one inf", "one nan"])
def test_extremes_by_rows(extreme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shortcut too: nothing of it reaches the rows around."""
    case = convolve(2, 32, 48, 5, 32, more=16, relu=True, residual=True, with_statistics=True)
    arguments = list(case.make(Draw(torch.float16, DEVICE)))
    arguments[0] = EXTREMES[extreme](arguments[0])
    arguments[2] = EXTREMES[extreme](arguments[2])
    with convolved_by(ConvolutionTile(32, 32, 32, 4, 2, rows=4), monkeypatch):
        assert worst(case.operation, arguments) <= 1


@pytest.mark.parametrize("case", NOT_IN_WHOLE_ROWS, ids=str)
def test_what_cannot_be_described(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules leave it to cuDNN; who asks for the tile all the same gets it by the other kernel."""
    arguments = case.make(Draw(torch.float16, DEVICE))
    tile = ConvolutionTile(32, 32, 32, 4, 3, described=True)
    with_statistics = case.operation.gives_statistics
    with convolved_by(tile, monkeypatch):
        assert convolution.tile_for(arguments[0], arguments[1], with_statistics) is None
    plan = case.operation.plan(*arguments, tile=tile)
    assert [(call.kernel, call.constants["PIXELS"]) for call in plan[1]] == [(convolution_kernel, 32)]
    assert error(launch.run(plan)[0], expected(case.operation, arguments)[0]) <= tolerance(torch.float16)


@pytest.mark.parametrize("layout", [planes, window, odd_stride])
def test_described_in_every_memory_layout(layout: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_copy_engine()
    case = convolve(1, 32, 40, 4, 16, more=16, last=48, residual=True, with_statistics=True)
    arguments = case.make(Draw(torch.float16, DEVICE))
    with convolved_by(ConvolutionTile(32, 32, 32, 4, 3, described=True), monkeypatch):
        plan = case.operation.plan(*map(layout, arguments))
        assert [call.kernel for call in plan[1]] == [described_convolution_kernel]
        result, _ = launch.run(plan)
    assert error(result, expected(case.operation, arguments)[0]) <= tolerance(torch.float16)


@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_described(extreme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_copy_engine()
    case = convolve(2, 32, 48, 4, 16, more=16, relu=True, residual=True, with_statistics=True)
    arguments = list(case.make(Draw(torch.float16, DEVICE)))
    arguments[0] = EXTREMES[extreme](arguments[0])
    with convolved_by(ConvolutionTile(32, 32, 32, 4, 3, described=True), monkeypatch):
        assert worst(case.operation, arguments) <= 1


@pytest.mark.parametrize(
    ("name_a", "name_b", "rules"),
    [
        ("mri", "pet", Rules()),
        ("color noise", "saturated", Rules(0.6)),
        ("gray noise", "color noise", Rules(1, True)),
        ("pet", "gray noise", Rules()),
    ],
)
def test_images_by_kernels(name_a: str, name_b: str, rules: Rules) -> None:
    """The same pixels as by PyTorch's operators, whatever a network answers; of a batch too."""
    given = {name: image[20:44, 20:50] for name, image in images().items()}
    a, b = (torch.tensor(np.stack([given[name], given[name][::-1]]), device=DEVICE) for name in (name_a, name_b))
    random = torch.rand((2, 1, *a.shape[1:3]), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    seen: list[dict[str, Tensor]] = []

    def network(**inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return 2.2 * random - 1.1

    interface = Interface(timesteps=0, interval=True)
    wanted, got = (
        PixelsToPixels(network, interface, rules, device=DEVICE, kernels=kernels)(a, b) for kernels in (False, True)
    )
    assert torch.equal(got, wanted)
    for name, value in seen[0].items():
        assert torch.equal(seen[1][name], value), name


Last: TypeAlias = Callable[[Case], tuple[tuple[Any, ...], Launch, tuple[Tensor, ...]]]
# More than 2^31 values: what is not in the last tile is never touched, and takes no memory.
FAR = (17, 128, 1024, 1024)


@pytest.fixture
def last_programs(monkeypatch: pytest.MonkeyPatch) -> Last:
    """Runs only the last program of a case's last launch, whose tile is filled; gives arguments, launch and results."""
    if DEVICE == "cuda":
        pytest.skip("a GPU has no memory that is not there")
    place = interpreter.interpreter_builder.set_grid_idx

    def run(case: Case) -> tuple[tuple[Any, ...], Launch, tuple[Tensor, ...]]:
        def new(n: int, channels: int, height: int, width: int) -> Tensor:
            shape = (n, channels, height, width)
            feature = torch.empty(shape, dtype=torch.float16, memory_format=torch.channels_last)
            feature[-1, :, -8:] = torch.randn(channels, 8, width)
            return feature

        draw = Draw(torch.float16, "cpu")
        monkeypatch.setattr(draw, "feature", new)
        arguments = case.make(draw)
        results, launches = case.operation.plan(*arguments)
        last = launches[-1]
        for table in last.arguments.values():
            if isinstance(table, Tensor) and table.dtype == torch.float32 and not any(table is r for r in results):
                table.normal_()
        grid = (*last.grid, 1, 1)[:3]
        builder = interpreter.interpreter_builder
        monkeypatch.setattr(builder, "set_grid_dim", lambda *_: setattr(builder, "grid_dim", grid))
        monkeypatch.setattr(builder, "set_grid_idx", lambda *_: place(*(length - 1 for length in grid)))
        replace(last, grid=(1,)).run()
        return arguments, last, results

    return run


def tensor(call: Launch, name: str) -> Tensor:
    """What a launch is given by this name."""
    found = call.arguments[name]
    assert isinstance(found, Tensor)
    return found


def test_far_epilogue(last_programs: Last) -> None:
    case = epilogue(*FAR, bias=True, residual=False, relu=False, with_statistics=True)
    (h, bias, *_), _, (out, found) = last_programs(case)
    wanted = h[-1, 64:, -2:].double() + bias[64:, None, None]
    assert error(out[-1, 64:, -2:], wanted) <= tolerance(torch.float16)
    assert error(found[-1, -1, 0, 64:], out[-1, 64:, -2:].double().mean((1, 2))) <= tolerance(torch.float32)


def test_far_norm(last_programs: Last) -> None:
    (x, *_, bias, _, _, _), last, (out,) = last_programs(norm(*FAR[:2], 0, *FAR[2:], 32, silu=False))
    centre, scale = tensor(last, "moments")[-1, :, 64:, None].double()
    wanted = (x[-1, 64:, -1, -32:].double() - centre) * scale + bias[64:, None]
    assert error(out[-1, 64:, -1, -32:], wanted) <= tolerance(torch.float16)


def test_far_upsample(last_programs: Last) -> None:
    (x, *_), _, (out,) = last_programs(upsample(17, 128, 512, 512, addend=False, relu=False))
    wanted = upsample_reference(x[-1:, 64:, -2:].double(), None, False)  # its last row is that of the whole
    assert error(out[-1, 64:, -1, -32:], wanted[0, :, -1, -32:]) <= tolerance(torch.float16)


def test_far_gate(last_programs: Last) -> None:
    (x, y, *_, weight, bias), last, (out,) = last_programs(gate(*FAR))
    by_channel, by_pixel = (tensor(last, name)[-1].double() for name in ("by_channel", "by_pixel"))
    s = (x[-1, 96:, -3:, -3:].double() + y[-1, 96:, -3:, -3:]).transpose(1, 2).flatten(1)  # for the pixel at (-2, -2)
    q = by_channel[96:, None] + by_pixel.unflatten(0, FAR[2:])[-3:, -3:].t().flatten()
    own, other = weight[:, :, 96:].double().unflatten(1, (3, 3)).transpose(1, 2).flatten(1, 2).transpose(1, 2)
    g = torch.sigmoid((own * s + other * q).sum(1) + bias[96:])
    x_here, y_here = x[-1, 96:, -2, -2].double(), y[-1, 96:, -2, -2].double()
    wanted = (x_here + y_here) * (g * (x_here - y_here) + 1) + y_here
    assert error(out[-1, 96:, -2, -2], wanted) <= tolerance(torch.float16)


@pytest.mark.parametrize("described", [False, True])
def test_far_convolution(described: bool, last_programs: Last, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tile is one part of the statistics, the last two rows."""
    case = convolve(*FAR[:2], 128, *FAR[2:], more=128, residual=True, with_statistics=True)
    with convolved_by(ConvolutionTile(2048, 64, 64, 4, 3, described), monkeypatch):
        (x, weight, more, more_weight, _, _, bias, residual, _), last, (out, found) = last_programs(case)
    assert last.kernel is (described_convolution_kernel if described else convolution_kernel)
    near = F.conv2d(x[-1:, :, -3:].double(), weight.double(), padding=1)[0, 64:, -2:]
    wanted = near + F.conv2d(more[-1:, :, -2:].double(), more_weight.double())[0, 64:]
    wanted = wanted + bias[64:, None, None] + residual[-1, 64:, -2:]
    assert error(out[-1, 64:, -2:], wanted) <= tolerance(torch.float16)
    assert error(found[-1, -1, 0, 64:], out[-1, 64:, -2:].double().mean((1, 2))) <= tolerance(torch.float32)


@pytest.mark.parametrize("up", [False, True])
def test_far_resampling(up: bool, last_programs: Last) -> None:
    """Its tile is one part of the statistics; of a transposed convolution, odd pixels of odd rows."""
    n, channels, height, width = (8, 128, 1024, 1024) if up else (FAR[0], FAR[1], 1024, 1024)
    tile = ConvolutionTile(8192 if up else 512, 64, 64, 4, 3)
    (x, weight, bias), _, (out, found) = last_programs(by_tile(resample(n, channels, 128, height, width, up), tile))
    if up:
        kernel = weight[3, 64:].double().unflatten(1, (2, 2)).permute(0, 3, 1, 2)
        wanted = F.conv2d(F.pad(x[-1:, :, -8:].double(), (0, 1, 0, 1)), kernel, bias[64:].double())[0]
        got = out[-1, 64:, -15::2, 1::2]
    else:
        wanted = F.conv2d(x[-1:, :, -4:].double(), weight.double(), bias.double(), stride=2, padding=1)[0, 64:, -1:]
        got = out[-1, 64:, -1:]
    assert error(got, wanted) <= tolerance(torch.float16)
    assert error(found[-1, -1, 0, 64:], got.double().mean((1, 2))) <= tolerance(torch.float32)


def test_far_first_convolution(last_programs: Last) -> None:
    (x, weight, bias, _), _, (out, found) = last_programs(from_one(FAR[0], FAR[1], *FAR[2:]))
    wanted = F.conv2d(x[-1:, :, -3:].double(), weight.double(), bias.double(), padding=1)[0, 64:, -2:]
    assert error(out[-1, 64:, -2:], wanted) <= tolerance(torch.float16)
    assert error(found[-1, -1, 0, 64:], out[-1, 64:, -2:].double().mean((1, 2))) <= tolerance(torch.float32)


def test_far_head(last_programs: Last) -> None:
    (x, *_), last, (out,) = last_programs(to_one(*FAR, tanh=False))
    weight, bias = (tensor(last, name).double() for name in ("weight", "bias"))
    seen = F.leaky_relu(x[-1:, :, -2:].double(), 0.2)
    wanted = F.conv2d(seen, weight.permute(0, 3, 1, 2), bias, padding=1)[0, 0, -1, -16:]
    assert error(out[-1, 0, -1, -16:], wanted) <= tolerance(torch.float32)


# The interpreter would take a minute for the paper's network in the width of a preset.
NETWORKS: dict[str, Callable[[], Network]] = {
    "paper's": lambda: model_by_rule(SMALL["paper's"]),
    "turbo": lambda: load_model(shipped()["turbo"]),
    "nano": lambda: load_model(shipped()["nano"]),
}


# Rounding makes 3e-3 to 4e-3.
def test_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole network, through the torch operators, with PyTorch's convolutions where this runs without a GPU."""
    use_large_tiles(monkeypatch)
    assert fused_error("paper's", "float16") <= 0.015


@pytest.mark.parametrize("name", ["turbo", "nano"])
def test_network_with_our_convolutions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_large_tiles(monkeypatch)
    launched = set()
    run = Launch.run

    def noted(call: Launch) -> None:
        launched.add(call.kernel)
        run(call)

    monkeypatch.setattr(Launch, "run", noted)
    kernels = {convolution_kernel} if name == "nano" else {convolution_kernel, described_convolution_kernel}
    if name == "turbo":
        # Everything that was not measured, in a network.
        large = Tile(256, 32)
        rules = (ConvolutionRule(ANY, ANY, ANY, ConvolutionTile(1024, 64, 64)),)
        for number in (80, 90):
            tiles = replace(
                ARCHITECTURES[number],
                gates=(rule(True, 4, large, large),),
                downsamplings=rules,
                upsamplings=rules,
                products=True,
                sources=True,
            )
            monkeypatch.setitem(ARCHITECTURES, number, tiles)
        kernels |= {folded_gate_kernel, resampling_kernel}
    with assumed(90):
        assert fused_error(name, "float16") <= 0.015
    if DEVICE == "cpu":
        assert launched >= kernels


def use_large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, fewer and larger ones: the interpreter's time goes by their number."""
    if DEVICE == "cpu":
        large = Tile(1024, 64)
        tiles = Tiles(large, large, Tile(256, 32), Tile(1024, 1), Tile(256, 32), large, first=large, head=Tile(1024, 1))
        # Tiles of 1024 pixels cannot be whole rows of the smallest maps.
        by_copy_engine = ConvolutionTile(1024, 64, 64, described=True)
        rules = (
            ConvolutionRule(ANY, ANY, 2000, replace(by_copy_engine, described=False)),
            ConvolutionRule(ANY, ANY, ANY, by_copy_engine),
        )
        monkeypatch.setitem(ARCHITECTURES, 80, tiles)
        monkeypatch.setitem(ARCHITECTURES, 90, replace(tiles, convolutions=rules))
        monkeypatch.setattr(convolution_epilogue, "FEWEST_PIXELS", 1024)


def fused_error(name: str, precision: FloatPrecision) -> float:
    """The largest difference of the network on our kernels from the network as trained."""
    model = NETWORKS[name]().to(DEVICE)
    inputs = random_inputs(model.config, height=64, width=64)
    given = {name: torch.tensor(array, device=DEVICE) for name, array in inputs.items()}
    with torch.no_grad(), arithmetic():
        wanted = model(**given)
        got = optimize(model, precision, kernels=True)(**given)
    return float((got - wanted).abs().max())
