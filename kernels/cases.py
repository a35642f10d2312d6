"""Inputs for every operation: those that the network gives it, and odd ones. For tests, reports and benchmarks.

Shapes are those of the optimized network with all passes of a pair in one batch, two for each timestep; a test compares
them with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import (
    attention,
    convolution,
    convolution_epilogue,
    diffuse,
    fusion_gate,
    group_norm_silu,
    single_channel,
    student_ends,
    upsample_add,
)
from kernels.launch import Operator, Plan


class Draw:
    """Random inputs: features of dtype `dtype` in channels-last memory, and parameters.

    Args:
        dtype: of the features.
        device: "meta" gives shapes alone.
        seed: of the draws.
        scale, shift: of the features.
    """

    def __init__(self, dtype: torch.dtype, device: str, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> None:
        self.dtype, self.device, self.scale, self.shift = dtype, device, scale, shift
        self._generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)

    def table(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        if self._generator is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.randn(shape, generator=self._generator, device=self.device).to(dtype)

    def parameter(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (shift + scale * self.table(*shape)).to(self.dtype)

    def feature(self, n: int, channels: int, height: int, width: int) -> Tensor:
        values = (self.shift + self.scale * self.table(n, channels, height, width)).to(self.dtype)
        return values.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Operation:
    """One fused operation.

    Attributes:
        name: of the torch operator.
        plan, reference: as in its file; they take the same arguments.
        operator: the torch operator.
    """

    name: str
    plan: Callable[..., Plan]
    reference: Callable[..., Any]
    operator: Operator[..., Any]


def _plan_epilogue(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Plan:
    return convolution_epilogue.plan(h, bias, residual, relu, write=True, statistics=False)


def _plan_epilogue_with_statistics(h: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Plan:
    return convolution_epilogue.plan(h, bias, residual, relu, write=True, statistics=True)


def _plan_statistics(x: Tensor) -> Plan:
    return convolution_epilogue.plan(x, None, None, False, write=False, statistics=True)


STATISTICS = Operation(
    "channel_statistics",
    _plan_statistics,
    convolution_epilogue.statistics_reference,
    convolution_epilogue.channel_statistics,
)
EPILOGUE = Operation(
    "convolution_epilogue",
    _plan_epilogue,
    convolution_epilogue.reference,
    convolution_epilogue.convolution_epilogue,
)
EPILOGUE_WITH_STATISTICS = Operation(
    "convolution_epilogue_with_statistics",
    _plan_epilogue_with_statistics,
    convolution_epilogue.reference_with_statistics,
    convolution_epilogue.convolution_epilogue_with_statistics,
)
GROUP_NORM_SILU = Operation(
    "group_norm_silu", group_norm_silu.plan, group_norm_silu.reference, group_norm_silu.group_norm_silu
)
FUSION_GATE = Operation("fusion_gate", fusion_gate.plan, fusion_gate.reference, fusion_gate.fusion_gate)
UPSAMPLE_ADD = Operation("upsample_add", upsample_add.plan, upsample_add.reference, upsample_add.upsample_add)
ATTENTION = Operation("attention", attention.plan, attention.reference, attention.attention)
DIFFUSE = Operation("diffuse", diffuse.plan, diffuse.reference, diffuse.diffuse)
CONVOLUTION = Operation("convolution", convolution.plan, convolution.reference, convolution.convolution)
CONVOLUTION_WITH_STATISTICS = Operation(
    "convolution_with_statistics",
    partial(convolution.plan, statistics=True),
    convolution.reference_with_statistics,
    convolution.convolution_with_statistics,
)
FIRST_CONVOLUTION = Operation(
    "first_convolution",
    single_channel.first_plan,
    single_channel.first_reference,
    single_channel.first_convolution,
)
HEAD = Operation("head", single_channel.head_plan, single_channel.head_reference, single_channel.head)
STUDENT_INPUTS = Operation(
    "student_inputs", student_ends.inputs_plan, student_ends.inputs_reference, student_ends.student_inputs
)
STUDENT_CHANGE = Operation(
    "student_change", student_ends.change_plan, student_ends.change_reference, student_ends.student_change
)
OPERATIONS = (
    STATISTICS,
    EPILOGUE,
    EPILOGUE_WITH_STATISTICS,
    GROUP_NORM_SILU,
    FUSION_GATE,
    UPSAMPLE_ADD,
    ATTENTION,
    DIFFUSE,
    CONVOLUTION,
    CONVOLUTION_WITH_STATISTICS,
    FIRST_CONVOLUTION,
    HEAD,
    STUDENT_INPUTS,
    STUDENT_CHANGE,
)
# On matrix units, of which Triton's interpreter gets bfloat16 wrong.
OF_MATRICES = (ATTENTION, CONVOLUTION, CONVOLUTION_WITH_STATISTICS, FIRST_CONVOLUTION)
# Their last argument is the type of the result, whatever that of the inputs is.
OF_A_TYPE = (DIFFUSE, STUDENT_INPUTS)
# What follows a result, and with what it is compared apart from it.
WITH_STATISTICS = (EPILOGUE_WITH_STATISTICS, CONVOLUTION_WITH_STATISTICS, FIRST_CONVOLUTION)


@dataclass(frozen=True)
class Case:
    """One call: `make` draws its arguments."""

    operation: Operation
    name: str
    make: Callable[[Draw], tuple[Any, ...]]

    def __str__(self) -> str:
        return f"{self.operation.name} {self.name}"


def statistics(n: int, channels: int, height: int, width: int) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        return (draw.feature(n, channels, height, width),)

    return Case(STATISTICS, f"{n}x{channels}x{height}x{width}", make)


def epilogue(
    n: int, channels: int, height: int, width: int, bias: bool, residual: bool, relu: bool, with_statistics: bool
) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        h = draw.feature(n, channels, height, width)
        return (
            h,
            draw.parameter(channels) if bias else None,
            draw.feature(n, channels, height, width) if residual else None,
            relu,
        )

    parts = [label for label, given in (("bias", bias), ("relu", relu), ("residual", residual)) if given]
    name = f"{n}x{channels}x{height}x{width} {' '.join(parts)}".strip()
    return Case(EPILOGUE_WITH_STATISTICS if with_statistics else EPILOGUE, name, make)


def norm(
    n: int,
    channels: int,
    skip: int,
    height: int,
    width: int,
    groups: int,
    rows: int = 0,
    known: bool = False,
    silu: bool = True,
) -> Case:
    """`known`: the statistics are given; `rows`: of the noise bias."""

    def make(draw: Draw) -> tuple[Any, ...]:
        def given(x: Tensor | None) -> Tensor | None:
            if x is None or not known:
                return None
            if draw.device == "meta":
                return draw.table(*convolution_epilogue.statistics_shape(x))
            return convolution_epilogue.statistics_reference(x).float()

        x = draw.feature(n, channels, height, width)
        other = draw.feature(n, skip, height, width) if skip else None
        total = channels + skip
        noise_bias = draw.table(rows, total) if rows else None
        weight, bias = draw.parameter(total, scale=0.1, shift=1.0), draw.parameter(total, scale=0.1)
        return x, given(x), other, given(other), noise_bias, weight, bias, groups, 1e-5, silu

    flags = [label for label, on in (("bias", rows), ("known", known), ("silu", silu)) if on]
    width_name = f"{channels}+{skip}" if skip else f"{channels}"
    return Case(GROUP_NORM_SILU, f"{n}x{width_name}x{height}x{width} {' '.join(flags)}".strip(), make)


def gate(n: int, channels: int, height: int, width: int) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        reduced = max(1, channels // 8)
        return (
            draw.feature(n, channels, height, width),
            draw.feature(n, channels, height, width),
            draw.parameter(reduced, channels, scale=channels**-0.5),
            draw.parameter(reduced, scale=0.1),
            draw.parameter(channels, reduced, scale=reduced**-0.5),
            draw.parameter(channels, scale=0.1),
            draw.parameter(1, 2, 7, 7, scale=0.1),
            draw.parameter(1, scale=0.1),
            draw.parameter(2, 9, channels, scale=0.3),
            draw.parameter(channels, scale=0.1),
        )

    return Case(FUSION_GATE, f"{n}x{channels}x{height}x{width}", make)


def upsample(n: int, channels: int, height: int, width: int, addend: bool, relu: bool) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        x = draw.feature(n, channels, height, width)
        return x, draw.feature(n, channels, 2 * height, 2 * width) if addend else None, relu

    flags = [label for label, on in (("relu", relu), ("addend", addend)) if on]
    return Case(UPSAMPLE_ADD, f"{n}x{channels}x{height}x{width} {' '.join(flags)}".strip(), make)


def attend(n: int, channels: int, height: int, width: int) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        return (draw.feature(n, 3 * channels, height, width),)

    return Case(ATTENTION, f"{n}x{channels}x{height}x{width}", make)


def noisy(n: int, height: int, width: int, steps: int = 3) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        a, b = draw.table(n, 1, height, width), draw.table(n, 1, height, width)
        return a, b, draw.table(steps, 2, height, width), draw.table(steps), draw.table(steps), draw.dtype

    return Case(DIFFUSE, f"{n}x1x{height}x{width}", make)


def convolve(
    n: int,
    inputs: int,
    outputs: int,
    height: int,
    width: int,
    size: int = 3,
    more: int = 0,
    last: int = 0,
    bias: bool = True,
    residual: bool = False,
    relu: bool = False,
    with_statistics: bool = False,
) -> Case:
    """`size`: of the kernel's side; `more`, `last`: channels of the shortcuts' inputs."""

    def make(draw: Draw) -> tuple[Any, ...]:
        def with_weight(channels: int, side: int) -> tuple[Tensor | None, Tensor | None]:
            if not channels:
                return None, None
            weight = draw.parameter(outputs, channels, side, side, scale=(channels * side * side) ** -0.5)
            weight = weight.contiguous(memory_format=torch.channels_last)
            return draw.feature(n, channels, height, width), weight

        return (
            *with_weight(inputs, size),
            *with_weight(more, 1),
            *with_weight(last, 1),
            draw.parameter(outputs) if bias else None,
            draw.feature(n, outputs, height, width) if residual else None,
            relu,
        )

    flags = {"bias": bias, "relu": relu, "residual": residual, f"+{more}": more, f"+{last} last": last}
    parts = [label for label, given in flags.items() if given]
    name = f"{n}x{inputs}x{height}x{width} to {outputs} {size}x{size} {' '.join(parts)}".strip()
    return Case(CONVOLUTION_WITH_STATISTICS if with_statistics else CONVOLUTION, name, make)


def from_one(n: int, channels: int, height: int, width: int) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        return draw.feature(n, 1, height, width), draw.parameter(channels, 1, 3, 3), draw.parameter(channels)

    return Case(FIRST_CONVOLUTION, f"{n}x1x{height}x{width} to {channels}", make)


def to_one(n: int, channels: int, height: int, width: int, tanh: bool) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        weight = draw.table(1, channels, 3, 3) * (9 * channels) ** -0.5
        return draw.feature(n, channels, height, width), weight, draw.table(1), tanh

    return Case(HEAD, f"{n}x{channels}x{height}x{width}{' tanh' if tanh else ''}", make)


def unshuffled(n: int, height: int, width: int, factor: int = 2) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        a, b, interval = (draw.table(n, planes, height, width) for planes in (1, 1, 2))
        return a, b, interval, factor, draw.dtype

    return Case(STUDENT_INPUTS, f"{n}x4x{height}x{width} by {factor}", make)


def changed(n: int, height: int, width: int, factor: int = 2) -> Case:
    def make(draw: Draw) -> tuple[Any, ...]:
        a, b, interval = (draw.table(n, planes, height, width) for planes in (1, 1, 2))
        return draw.feature(n, factor**2, height // factor, width // factor), a, b, interval.sort(1).values, factor

    return Case(STUDENT_CHANGE, f"{n}x4x{height}x{width} by {factor}", make)


def network_cases(
    channels: int, groups: int, height: int, width: int, pairs: int = 1, steps: int = 3, noise: bool = True
) -> Iterator[Case]:
    """Every call that the optimized network of `channels` and `groups` makes, some more than once.

    `steps`: its timesteps; `noise`: whether it takes noise.
    """
    images = 2 * steps * pairs
    sizes = [(height >> level, width >> level) for level in range(5)]
    widths = [channels] * 4 + [2 * channels]

    if noise:
        yield noisy(pairs, height, width, steps)
    for level, (size, own) in enumerate(zip(sizes, widths, strict=True)):
        last = level == len(sizes) - 1
        after, before = widths[min(level + 1, 4)], widths[max(level - 1, 0)]
        # What comes from above (the first convolution, downsampling) and from below (upsampling).
        yield epilogue(images, before, *size, bias=True, residual=False, relu=False, with_statistics=True)
        if not last:
            yield epilogue(images, after, *size, bias=True, residual=False, relu=False, with_statistics=True)
        # Blocks of the down path and of the up path.
        for inputs in {own, before}:
            yield norm(images, inputs, 0, *size, groups, known=True)
        for path, skip in {(after, own), (own, before)}:
            yield norm(images, path, skip, *size, groups, known=True)
        yield norm(images, own, 0, *size, groups, rows=steps)
        yield epilogue(images, own, *size, bias=True, residual=True, relu=False, with_statistics=True)
        yield epilogue(images, own, *size, bias=False, residual=True, relu=False, with_statistics=True)
        # The fusion level.
        yield epilogue(2 * pairs, own, *size, bias=True, residual=False, relu=True, with_statistics=False)
        yield gate(pairs, own, *size)
        yield epilogue(pairs, channels, *size, bias=True, residual=False, relu=True, with_statistics=False)
        if level > 0:
            yield upsample(pairs, channels, *size, addend=True, relu=False)
            if not last:
                yield epilogue(pairs, channels, *size, bias=True, residual=True, relu=True, with_statistics=False)
            if level > 1:
                yield upsample(pairs, channels, *size, addend=False, relu=True)
    yield norm(images, widths[4], 0, *sizes[4], groups, known=True, silu=False)
    yield attend(images, widths[4], *sizes[4])


def is_own(case: Case, dtype: torch.dtype) -> bool:
    """Whether a convolution of features of `dtype` is our own on the architecture that is planned for."""
    x, weight, *_ = case.make(Draw(dtype, "meta"))
    return convolution.tile_for(x, weight, case.operation is CONVOLUTION_WITH_STATISTICS) is not None


def own_cases(
    channels: int,
    groups: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    pairs: int = 1,
    steps: int = 3,
    tanh: bool = True,
) -> Iterator[Case]:
    """What the network of `network_cases` calls besides or instead on a GPU, as `launch.assumed` has it.

    `tanh`: whether that is its activation.
    """
    images = 2 * steps * pairs
    sizes = [(height >> level, width >> level) for level in range(5)]
    widths = [channels] * 4 + [2 * channels]
    convolutions: list[Case] = []

    first = from_one(images, channels, height, width)
    if dtype != torch.float32 and single_channel.first_fits(first.make(Draw(dtype, "meta"))[0]):
        yield first
    for level, (size, own) in enumerate(zip(sizes, widths, strict=True)):
        after, before = widths[min(level + 1, 4)], widths[max(level - 1, 0)]
        # Blocks of the down path and of the up path: a feature map by itself, or beside another.
        for path, skip in {(own, 0), (before, 0), (after, own), (own, before)}:
            begin = convolve(images, path + skip, own, *size, bias=False, with_statistics=True)
            convolutions.append(begin)
            if is_own(begin, dtype):
                yield norm(images, own, 0, *size, groups, rows=steps, known=True)
            more = path if skip or path != own else 0
            convolutions.append(
                convolve(images, own, own, *size, more=more, last=skip, residual=not more, with_statistics=True)
            )
        # The fusion level; a convolution takes the features of up to three timesteps.
        if steps <= 3:
            more, last = (own if steps > place else 0 for place in (1, 2))
            convolutions.append(convolve(2 * pairs, own, own, *size, size=1, more=more, last=last, relu=True))
        convolutions.append(convolve(2 * pairs, own, own, *size, relu=True))
        convolutions.append(convolve(pairs, own, channels, *size, size=1, relu=True))
        convolutions.append(convolve(pairs, channels, channels, *size, relu=True))
        if 0 < level < len(sizes) - 1:
            convolutions.append(convolve(pairs, channels, channels, *size, relu=True, residual=True))
    convolutions.append(convolve(pairs, channels, channels // 2, height, width))
    yield from (case for case in convolutions if is_own(case, dtype))
    yield to_one(pairs, channels // 2, height, width, tanh)


def student_cases(
    channels: int, height: int, width: int, dtype: torch.dtype, pairs: int = 1, factor: int = 2
) -> Iterator[Case]:
    """Every call that a student of `channels` makes on a GPU, as `launch.assumed` has it."""
    size = height // factor, width // factor
    yield unshuffled(pairs, height, width, factor)
    for inputs, outputs, residual, relu in (
        (student_ends.PLANES * factor**2, channels, False, True),
        (channels, channels, False, True),
        (channels, channels, True, False),
        (channels, factor**2, False, False),
    ):
        own = convolve(pairs, inputs, outputs, *size, residual=residual, relu=relu)
        cudnn = epilogue(pairs, outputs, *size, bias=True, residual=residual, relu=relu, with_statistics=False)
        yield own if is_own(own, dtype) else cudnn
    yield changed(pairs, height, width, factor)


# One pixel and one channel beyond the tiles, single pixels, batches of 1 and 7, groups that straddle the seam.
ODD_CASES: tuple[Case, ...] = (
    statistics(1, 32, 1, 1),
    statistics(7, 33, 5, 13),
    statistics(1, 65, 33, 33),
    epilogue(1, 1, 3, 3, bias=True, residual=True, relu=True, with_statistics=False),
    epilogue(2, 65, 1, 33, bias=True, residual=False, relu=True, with_statistics=False),
    epilogue(7, 24, 5, 7, bias=False, residual=True, relu=False, with_statistics=True),
    epilogue(1, 128, 17, 2, bias=True, residual=True, relu=False, with_statistics=True),
    epilogue(1, 16, 96, 97, bias=True, residual=False, relu=False, with_statistics=True),
    norm(1, 1, 0, 1, 33, 1),
    norm(1, 32, 0, 1, 1, 8),
    norm(7, 32, 0, 4, 4, 8, known=True),
    norm(6, 48, 0, 5, 7, 3, rows=3),
    norm(2, 64, 32, 3, 11, 8, known=True),
    norm(2, 64, 32, 11, 3, 6, rows=1, silu=False),
    norm(1, 128, 65, 7, 5, 1),
    norm(1, 96, 48, 5, 3, 144),
    norm(2, 32, 0, 24, 41, 8, rows=2, known=True),
    norm(2, 24, 8, 5, 7, 2, known=True),
    norm(1, 128, 0, 5, 7, 1),
    gate(1, 16, 4, 4),
    gate(7, 32, 5, 9),
    gate(1, 72, 9, 17),
    gate(2, 128, 8, 4),
    upsample(1, 32, 1, 1, addend=True, relu=False),
    upsample(1, 65, 1, 5, addend=False, relu=True),
    upsample(7, 17, 3, 2, addend=True, relu=True),
    attend(1, 16, 4, 4),
    attend(7, 64, 5, 3),
    attend(1, 128, 11, 3),
    attend(1, 192, 5, 7),
    attend(1, 256, 8, 9),
    convolve(1, 16, 4, 1, 1),
    convolve(2, 32, 32, 7, 9, relu=True, residual=True),
    convolve(3, 48, 72, 5, 13, more=16, last=32, with_statistics=True),
    convolve(1, 16, 33, 9, 33, size=1, bias=False, with_statistics=True),
    convolve(1, 32, 48, 33, 40, size=1, relu=True),
    convolve(7, 64, 16, 2, 3, more=64, with_statistics=True),
    from_one(1, 16, 1, 1),
    from_one(2, 33, 9, 33),
    from_one(7, 72, 3, 5),
    to_one(1, 16, 3, 2, tanh=True),
    to_one(3, 65, 9, 17, tanh=True),
    to_one(7, 8, 4, 33, tanh=False),
    unshuffled(1, 2, 2),
    unshuffled(7, 34, 66),
    unshuffled(2, 9, 6, factor=3),
    changed(1, 2, 2),
    changed(7, 34, 66),
    changed(2, 9, 6, factor=3),
    noisy(1, 3, 5),
    noisy(7, 33, 32, steps=2),
)
