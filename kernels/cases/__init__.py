"""The fused operations, with inputs for each: those that the networks give it, and odd ones. For tests and reports.

Every kernel file has a file of its name here, which ends in its record; RECORDS lists them, and everything that goes
through all operations takes them from there. What the networks call has shapes of the optimized network with all passes
of a pair in one batch, two for each timestep; a test compares them with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.cases.attention import RECORD as _ATTENTION
from kernels.cases.attention import attend
from kernels.cases.convolution import RECORD as _CONVOLUTION
from kernels.cases.convolution import convolve, is_own
from kernels.cases.convolution_epilogue import RECORD as _CONVOLUTION_EPILOGUE
from kernels.cases.convolution_epilogue import epilogue
from kernels.cases.diffuse import RECORD as _DIFFUSE
from kernels.cases.diffuse import noisy
from kernels.cases.fusion_gate import RECORD as _FUSION_GATE
from kernels.cases.fusion_gate import RULES as GATE_RULES
from kernels.cases.fusion_gate import by_rule as gate_by_rule
from kernels.cases.fusion_gate import gate
from kernels.cases.group_norm_silu import RECORD as _GROUP_NORM_SILU
from kernels.cases.group_norm_silu import norm
from kernels.cases.record import Case, Draw, Operation, Record
from kernels.cases.resampling import RECORD as _RESAMPLING
from kernels.cases.resampling import RULES as RESAMPLING_RULES
from kernels.cases.resampling import by_rules as resampling_by_rules
from kernels.cases.resampling import resamplings
from kernels.cases.single_channel import RECORD as _SINGLE_CHANNEL
from kernels.cases.single_channel import from_interval, from_one, to_one
from kernels.cases.student_ends import RECORD as _STUDENT_ENDS
from kernels.cases.student_ends import changed, unshuffled
from kernels.cases.upsample_add import RECORD as _UPSAMPLE_ADD
from kernels.cases.upsample_add import upsample
from kernels.single_channel import first_fits
from kernels.student_ends import PLANES

# By the name of the kernel file.
RECORDS: dict[str, Record] = {
    "convolution": _CONVOLUTION,
    "convolution_epilogue": _CONVOLUTION_EPILOGUE,
    "resampling": _RESAMPLING,
    "single_channel": _SINGLE_CHANNEL,
    "group_norm_silu": _GROUP_NORM_SILU,
    "fusion_gate": _FUSION_GATE,
    "upsample_add": _UPSAMPLE_ADD,
    "attention": _ATTENTION,
    "diffuse": _DIFFUSE,
    "student_ends": _STUDENT_ENDS,
}
OPERATIONS: tuple[Operation, ...] = tuple(operation for record in RECORDS.values() for operation in record.operations)
ODD_CASES: tuple[Case, ...] = tuple(case for record in RECORDS.values() for case in record.odd)
SMALL_CASES: tuple[Case, ...] = tuple(case for record in RECORDS.values() for case in record.small)
PREPARED_CASES: tuple[Case, ...] = tuple(case for record in RECORDS.values() for case in record.prepared)
# Fields of `Tiles` by which networks take the ways that were not measured.
PREPARED: dict[str, Any] = {
    "gates": GATE_RULES,
    "downsamplings": RESAMPLING_RULES,
    "upsamplings": RESAMPLING_RULES,
    "products": True,
    "sources": True,
}


def needs_tma(case: Case) -> bool:
    """Whether a case can only be launched on GPUs of compute capability 9.0 and later."""
    _, launches = case.operation.plan(*case.make(Draw(torch.float16, "meta")))
    return any(isinstance(value, TensorDescriptor) for launch in launches for value in launch.arguments.values())


def prepared_cases(channels: int, images: int, height: int, width: int) -> Iterator[Case]:
    """Calls of the network of `channels` on `images` maps, in ways that were not measured."""
    if images == 2:  # of one timestep, without noise
        yield from_one(1, channels, height, width, both=True)
        yield from_interval(1, channels // 2, height, width)
    for level, own in ((0, channels), (4, 2 * channels)):
        for rule in (GATE_RULES[0], GATE_RULES[-1]):
            yield gate_by_rule(gate(1, own, height >> level, width >> level), rule)
    yield from map(resampling_by_rules, resamplings(channels, images, height, width))


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

    `tanh`: whether that is its activation; otherwise it takes an interval.
    """
    images = 2 * steps * pairs
    sizes = [(height >> level, width >> level) for level in range(5)]
    widths = [channels] * 4 + [2 * channels]
    convolutions: list[Case] = []

    first = from_one(images, channels, height, width)
    if dtype != torch.float32 and first_fits(first.make(Draw(dtype, "meta"))[0]):
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
    convolutions.append(convolve(pairs, channels, channels // 2, height, width, residual=not tanh))
    yield from (case for case in convolutions if is_own(case, dtype))
    yield to_one(pairs, channels // 2, height, width, tanh)
    if not tanh:
        yield changed(pairs, height, width, factor=1)


def student_cases(
    channels: int, height: int, width: int, dtype: torch.dtype, pairs: int = 1, factor: int = 2
) -> Iterator[Case]:
    """Every call that a student of `channels` makes on a GPU, as `launch.assumed` has it."""
    size = height // factor, width // factor
    yield unshuffled(pairs, height, width, factor)
    for inputs, outputs, residual, relu in (
        (PLANES * factor**2, channels, False, True),
        (channels, channels, False, True),
        (channels, channels, True, False),
        (channels, factor**2, False, False),
    ):
        own = convolve(pairs, inputs, outputs, *size, residual=residual, relu=relu)
        cudnn = epilogue(pairs, outputs, *size, bias=True, residual=residual, relu=relu, with_statistics=False)
        yield own if is_own(own, dtype) else cudnn
    yield changed(pairs, height, width, factor)
