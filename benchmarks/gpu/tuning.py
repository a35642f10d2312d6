"""Finds the fastest launch configurations on this GPU: `python -m benchmarks.gpu.tuning -o TUNING.json`.

Every candidate for every kind of tile is timed on calls of the networks base, turbo and nano at 256x256; our
convolution is compared with cuDNN's followed by an epilogue. The winners are written into kernels/tiles.py by hand, as
a table of a few rules rather than of every measurement.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import astuple, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu import fusions as gpu_fusions
from benchmarks.gpu import networks as gpu_networks
from benchmarks.gpu.compile import run_in_processes, try_launch
from benchmarks.gpu.machine import Machine, environment, find_machine, measure_ceilings
from benchmarks.gpu.run import attempt
from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.engines.arithmetic import arithmetic
from kernels import convolution_epilogue, launch, resampling
from kernels.cases import PREPARED, fusion_gate
from kernels.cases import resampling as resampling_cases
from kernels.cases.convolution import BY_ROWS, CONVOLUTION_WITH_STATISTICS, convolve, is_own
from kernels.cases.convolution_epilogue import epilogue, statistics
from kernels.cases.fusion_gate import gate
from kernels.cases.group_norm_silu import norm
from kernels.cases.record import Case, Draw
from kernels.cases.single_channel import from_one, to_one
from kernels.cases.upsample_add import upsample
from kernels.compile import Signature, signature_of
from kernels.single_channel import first_fits
from kernels.tiles import ANY, ARCHITECTURES, ConvolutionRule, ConvolutionTile, GateRule, Tile

Rules: TypeAlias = tuple[ConvolutionRule, ...]
IN_FORCE = "in force"
SETS = 6  # of inputs, which take turns
RESAMPLINGS = "downsamplings", "upsamplings"  # fields of the tiles


@dataclass(frozen=True)
class Variant:
    """A candidate: a case with one field of the tiles changed."""

    case: Case
    field: str
    tile: Any


NARROW = tuple(
    itertools.starmap(
        ConvolutionTile,
        (
            (32, 32, 32, 2, 3),
            (32, 32, 32, 4, 3),
            (64, 32, 32, 4, 1),
            (64, 32, 32, 4, 3),
            (64, 32, 32, 2, 3),
            (64, 64, 64, 4, 3),
            (128, 32, 32, 4, 1),
            (128, 32, 32, 4, 3),
            (128, 32, 32, 8, 3),
            (128, 64, 64, 4, 3),
            (64, 32, 32, 4, 4, True),
            (128, 32, 32, 4, 4, True),
        ),
    )
)
WIDE = tuple(
    itertools.starmap(
        ConvolutionTile,
        (
            (128, 128, 64, 8, 3),
            (128, 128, 64, 8, 4),
            (128, 128, 64, 4, 4),
            (128, 128, 32, 8, 4),
            (64, 128, 64, 4, 4),
            (64, 64, 64, 4, 4),
            (256, 128, 64, 8, 3),
            (128, 128, 64, 8, 3, True),
            (128, 128, 64, 8, 4, True),
            (128, 128, 64, 4, 3, True),
            (256, 128, 64, 8, 3, True),
            (64, 128, 64, 4, 4, True),
            (128, 128, 32, 8, 4, True),
        ),
    )
)
# Small maps have few tiles, so that the number of steps of each counts: many channels a step, and many steps in flight.
NARROW_SMALL = tuple(
    ConvolutionTile(pixels, channels, inner, warps, stages)
    for pixels, channels, warps in ((16, 32, 2), (16, 32, 4), (32, 32, 2), (32, 32, 4), (64, 32, 4), (32, 64, 4))
    for inner, stages in ((32, 3), (32, 5), (64, 4), (64, 6), (128, 3), (128, 4))
)
WIDE_SMALL = tuple(
    ConvolutionTile(pixels, channels, inner, warps, stages, described)
    for pixels, channels, warps in ((64, 64, 4), (64, 128, 4), (128, 64, 4), (64, 32, 4))
    for inner, stages, described in (
        (64, 4, False),
        (64, 4, True),
        (64, 6, True),
        (128, 3, False),
        (128, 3, True),
        (128, 4, True),
        (256, 2, True),
    )
)


def _convolutions() -> Iterator[tuple[Case, tuple[ConvolutionTile, ...]]]:
    """The convolutions that take most of the time, with candidate tiles."""
    for n, inputs, outputs, side, candidates in (
        (6, 128, 128, 256, WIDE),
        (6, 128, 128, 128, WIDE),
        (6, 256, 128, 128, WIDE),
        (6, 128, 128, 64, WIDE),
        (6, 128, 128, 32, WIDE),
        (6, 256, 256, 16, WIDE),
        (2, 32, 32, 256, NARROW + BY_ROWS),
        (2, 64, 32, 256, NARROW + BY_ROWS),
        (2, 32, 32, 128, NARROW + BY_ROWS),
        (2, 64, 32, 128, NARROW + BY_ROWS),
        (2, 32, 32, 64, NARROW),
        (2, 32, 32, 32, NARROW),
        (2, 64, 64, 16, NARROW),
        *((6, 128 * inputs, 128, 64, WIDE_SMALL) for inputs in (1, 2)),
        *((6, 128 * inputs, 128, 32, WIDE_SMALL) for inputs in (1, 2, 3)),
        *((6, 128 * inputs, 256, 16, WIDE_SMALL) for inputs in (2, 3, 4)),
        *((2, 32 * inputs, 32, 64, NARROW_SMALL) for inputs in (1, 2)),
        *((2, 32 * inputs, 32, 32, NARROW_SMALL) for inputs in (1, 2, 3)),
        *((2, 32 * inputs, 64, 16, NARROW_SMALL) for inputs in (2, 3, 4)),
    ):
        yield convolve(n, inputs, outputs, side, side, with_statistics=True), candidates
    for n, inputs, outputs, side in ((1, 16, 32, 128), (1, 32, 32, 128), (8, 32, 32, 128), (1, 32, 4, 128)):
        yield convolve(n, inputs, outputs, side, side, relu=True), NARROW + BY_ROWS
    yield convolve(2, 32, 32, 128, 128, size=1, relu=True), NARROW
    yield convolve(6, 128, 128, 128, 128, size=1, relu=True), WIDE


def _tiles(numbers: tuple[tuple[int, int, int], ...]) -> tuple[Tile, ...]:
    return tuple(itertools.starmap(Tile, numbers))


BLOCKS = _tiles(
    (
        (32, 64, 4),
        (64, 64, 4),
        (64, 64, 8),
        (32, 128, 4),
        (32, 32, 2),
        (16, 64, 2),
        (16, 64, 4),
        (32, 32, 4),
        (64, 32, 4),
    )
)


@lru_cache
def variants(only: str) -> list[Variant]:
    """The variants to time whose case's name contains `only`, without duplicates; the same list in every process."""
    known: set[Any] = set()
    found = []
    for variant in _all_variants():
        if only not in str(variant.case):
            continue
        launches = planned(variant)
        key = str(variant.case), variant.field, launches
        if launches is not None and key not in known:
            known.add(key)
            found.append(variant)
    return found


def planned(variant: Variant) -> tuple[tuple[Signature, tuple[int, ...]], ...] | None:
    """Signatures and grids of a variant's launches, or None if its tile holds no whole part of statistics."""
    arguments = variant.case.make(Draw(torch.float16, "meta"))
    with tried(variant), launch.assumed(launch.OLDEST):
        if variant.field == "convolutions" and not is_own(variant.case, torch.float16):
            return None
        if variant.field == "first" and not first_fits(arguments[0]):
            return None
        if variant.field in RESAMPLINGS:
            outputs = len(arguments[2])
            if resampling.tile_for(arguments[0], outputs, RESAMPLINGS.index(variant.field) == 1) is None:
                return None
        _, launches = variant.case.operation.plan(*arguments)
    return tuple((signature_of(one), one.grid) for one in launches)


def _all_variants() -> list[Variant]:
    found = []
    for case, tiles in _convolutions():
        rules = [(ConvolutionRule(ANY, ANY, ANY, tile),) for tile in tiles]
        found += [Variant(case, "convolutions", rule) for rule in rules]
    shapes = ((6, 128, 256, 32), (6, 128, 64, 32), (2, 32, 256, 8), (2, 32, 64, 8))
    for n, channels, side, groups in shapes:
        both = epilogue(n, channels, side, side, bias=True, residual=True, relu=False, with_statistics=True)
        for case in (both, statistics(n, channels, side, side)):
            found += [Variant(case, "epilogue", tile) for tile in BLOCKS]
        normalized = norm(n, channels, 0, side, side, groups, known=True)
        found += [Variant(normalized, "normalize", tile) for tile in BLOCKS]
        for field, numbers in (
            ("pool", ((16, 128, 4), (32, 128, 4), (32, 128, 8), (8, 128, 4), (16, 128, 8))),
            ("spatial", ((128, 1, 4), (64, 1, 2), (256, 1, 4), (64, 1, 4), (32, 1, 1))),
            ("gate", ((64, 32, 4), (64, 64, 4), (64, 16, 4), (64, 32, 8), (16, 32, 2), (16, 64, 4), (256, 16, 4))),
        ):
            found += [Variant(gate(1, channels, side, side), field, Tile(*number)) for number in numbers]
    for n, channels in ((6, 128), (2, 32)):
        for first in ((128, 64, 4), (128, 32, 4), (128, 64, 8), (128, 128, 8), (256, 32, 4), (256, 64, 8)):
            found.append(Variant(from_one(n, channels, 256, 256), "first", Tile(*first)))
        for pixels, warps in ((64, 4), (32, 4), (128, 4), (128, 8), (32, 2), (16, 2), (16, 1), (64, 8)):
            found.append(Variant(to_one(1, channels // 2, 256, 256, True), "head", Tile(pixels, 1, warps)))
        found += [Variant(upsample(1, channels, 128, 128, True, False), "upsample", tile) for tile in BLOCKS]
    found += _prepared_variants()
    return found


def _prepared_variants() -> Iterator[Variant]:
    """Ways that no architecture uses yet, beside what they would replace."""
    for channels, side in ((32, 256), (32, 128), (32, 64), (64, 16), (128, 256), (128, 64), (256, 16)):
        case = gate(1, channels, side, side)
        yield Variant(case, "gates", ())
        yield from (Variant(case, "gates", (rule,)) for rule in fusion_gate.CANDIDATES)
    for channels, images, tiles in ((32, 2, resampling_cases.NARROW), (128, 6, resampling_cases.WIDE)):
        for case in resampling_cases.resamplings(channels, images, 256, 256):
            field = RESAMPLINGS[case.operation is resampling_cases.UPSAMPLING]
            yield from (Variant(case, field, (ConvolutionRule(ANY, ANY, ANY, tile),)) for tile in tiles)


def _replaced(rules: Rules, before: ConvolutionTile, after: ConvolutionTile) -> Rules:
    return tuple(replace(rule, tile=after) if rule.tile == before else rule for rule in rules)


def _by_rows(rules: Rules, tile: ConvolutionTile, least: int) -> Rules:
    """`rules`, but narrow 3x3 convolutions of at least `least` pixels, over the batch, row by row."""
    smaller = tuple(replace(rule, pixels=min(rule.pixels, least - 1)) for rule in rules)
    kept = tuple(rule for rule in smaller if rule.inputs < ANY)
    return (*kept, ConvolutionRule(64, 32, ANY, tile), *rules)


@dataclass(frozen=True)
class Setting:
    """A network of 256x256 pairs to time, with fields of the tiles that are not those in force."""

    network: str
    name: str
    fields: dict[str, Any]
    batch: int = 1
    two_streams: bool = False

    def __str__(self) -> str:
        pairs = f" x{self.batch}" if self.batch > 1 else ""
        return f"{self.network}{pairs}: {self.name}"

    @property
    def row(self) -> dict[str, Any]:
        """The entries that identify the setting in the results."""
        return {"network": self.network, "batch": self.batch, "rules": self.name}


def settings(only: str) -> list[Setting]:
    """Those to time whose network, batch and name, as in "turbo x8: cuDNN", contain `only`, beside the tiles in force.

    Among them are cuDNN's convolutions, one change each, and ways that no architecture uses yet.
    """
    found = _all_settings()
    chosen = {(one.network, one.batch) for one in found if only in str(one)}
    return [one for one in found if only in str(one) or (one.name == IN_FORCE and (one.network, one.batch) in chosen)]


def _all_settings() -> list[Setting]:
    present = ARCHITECTURES[max(ARCHITECTURES, key=lambda number: len(ARCHITECTURES[number].convolutions))].convolutions
    wide, small = (rule.tile for rule in (present[-1], present[-2]))
    narrow = next(rule.tile for rule in present if rule.outputs == 32 and rule.pixels == ANY)
    found: list[Setting] = []
    for network in ("base", "turbo", "nano"):
        found += [Setting(network, IN_FORCE, {}), Setting(network, "cuDNN", {"convolutions": ()})]
    for name, before, after in (
        ("wide: 8 warps", wide, replace(wide, warps=8)),
        ("wide: 256 pixels", wide, replace(wide, pixels=256, warps=8)),
        ("small: 3 stages", small, replace(small, stages=3)),
        ("small as wide", small, wide),
    ):
        found.append(Setting("base", name, {"convolutions": _replaced(present, before, after)}))
    without_largest = (*present[:-1], replace(present[-1], pixels=2**17))
    found.append(Setting("base", "cuDNN from 2^17 pixels", {"convolutions": without_largest}))
    for name, after in (
        ("narrow: 8 warps", replace(narrow, warps=8)),
        ("narrow: described", replace(narrow, stages=4, described=True)),
        ("narrow: 2 stages", replace(narrow, stages=2)),
    ):
        rules = {"convolutions": _replaced(present, narrow, after)}
        found += [Setting(network, name, rules) for network in ("turbo", "nano")]
    tile = ConvolutionTile(128, 32, 32, 4, 2, described=True, rows=8)
    for batch, network in itertools.product((1, 8), ("turbo", "nano")):
        if batch > 1:
            found.append(Setting(network, IN_FORCE, {}, batch))
        for rows, least in ((4, 2**14), (8, 2**14), (4, 2**17), (8, 2**17)):
            rules = {"convolutions": _by_rows(present, replace(tile, rows=rows), least)}
            name = f"narrow: by {rows} rows from 2^{least.bit_length() - 1} pixels"
            if batch > 1 or least < 2**17 or network == "turbo":  # nano has fewer pixels
                found.append(Setting(network, name, rules, batch))
    resamplings = {field: PREPARED[field] for field in RESAMPLINGS}
    prepared: tuple[tuple[str, dict[str, Any]], ...] = (
        ("gates in two launches", {"gates": (fusion_gate.TWO,)}),
        ("gates in three launches", {"gates": (fusion_gate.THREE,)}),
        ("gates in two launches up to 2^12 pixels, in three above", {"gates": PREPARED["gates"]}),
        ("own strided convolutions", {"downsamplings": PREPARED["downsamplings"]}),
        ("own transposed convolutions", {"upsamplings": PREPARED["upsamplings"]}),
        ("own strided and transposed convolutions", resamplings),
        ("own products", {"products": True}),
        ("sources as they are", {"sources": True}),
        ("everything prepared", PREPARED),
    )
    for network in ("turbo", "base"):
        # base has noise and no interval, so that its sources are not read as they are.
        fitting = [(name, fields) for name, fields in prepared if network == "turbo" or set(fields) != {"sources"}]
        found += [Setting(network, name, fields) for name, fields in fitting]
        everything = PREPARED | {"convolutions": _by_rows(present, tile, 2**17)}
        found.append(Setting(network, "two streams", {}, two_streams=True))
        found.append(Setting(network, "everything, by rows, two streams", everything, two_streams=True))
    return found


def _fused(machine: Machine, setting: Setting) -> dict[str, Any]:
    """Quality and time of a network under one of the `settings`, as a CUDA graph; if its image is wrong, no time."""
    networks = gpu_networks.Networks(machine)
    variant = gpu_fusions.TWO_STREAMS if setting.two_streams else gpu_fusions.KERNELS_CAPTURED
    case = gpu_networks.Case(setting.network, 256, setting.batch)
    with changed(**setting.fields), variant.settings():
        running = gpu_fusions.start(variant, case, networks)
        quality = gpu_networks.Quality.of(variant.precision, [running.image()], [networks.reference(case)])
        row = quality.to_dict()
        if not quality.within:
            return row | {"refused": f"wrong: {quality}"}
        return row | machine.time(running.launch, running.stream).to_dict()


def _compile_fused(setting: Setting) -> str | None:
    machine = find_machine()
    assert isinstance(machine, Machine)
    try:
        _fused(machine, setting)
    except Exception as error:  # compilers and drivers may raise anything
        return f"{setting}: {type(error).__name__}: {error}"[:300]
    return None


@contextmanager
def changed(**fields: Any) -> Iterator[None]:
    """Context in which launches are planned with other tiles, on every architecture."""
    before = dict(ARCHITECTURES)
    ARCHITECTURES.update({number: replace(tiles, **fields) for number, tiles in before.items()})
    try:
        yield
    finally:
        ARCHITECTURES.update(before)


def tried(variant: Variant) -> AbstractContextManager[None]:
    """Context in which launches are planned with the variant's tile."""
    return changed(**{variant.field: variant.tile})


def _compile(job: tuple[str, int]) -> str | None:
    only, number = job
    variant = variants(only)[number]
    with tried(variant):
        return try_launch(variant.case, variant.case.make(Draw(torch.float16, "cuda")))


def _by_cudnn(x: Tensor, weight: Tensor, *others: Any) -> Any:
    bias, residual, relu = others[-3:]
    h = F.conv2d(x, weight, padding=weight.shape[2] // 2)
    return convolution_epilogue.convolution_epilogue(h, bias, residual, relu)


def _by_cudnn_with_statistics(x: Tensor, weight: Tensor, *others: Any) -> Any:
    bias, residual, relu = others[-3:]
    h = F.conv2d(x, weight, padding=weight.shape[2] // 2)
    return convolution_epilogue.convolution_epilogue_with_statistics(h, bias, residual, relu)


def _down_by_cudnn(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    h = F.conv2d(x, weight, stride=2, padding=1)
    return convolution_epilogue.convolution_epilogue_with_statistics(h, bias, None, False)


def _up_by_cudnn(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """As many products, of weights in channels-last memory as the network has them."""
    kernel = weight.view(x.shape[1], 4, 4, -1).permute(0, 3, 1, 2)
    h = F.conv_transpose2d(x, kernel, stride=2, padding=1)
    return convolution_epilogue.convolution_epilogue_with_statistics(h, bias, None, False)


def _cudnn_call(variant: Variant) -> Callable[..., Any] | None:
    """What a variant of our convolutions is timed beside; None for everything else."""
    if variant.field == "convolutions":
        with_statistics = variant.case.operation is CONVOLUTION_WITH_STATISTICS
        return _by_cudnn_with_statistics if with_statistics else _by_cudnn
    return {"downsamplings": _down_by_cudnn, "upsamplings": _up_by_cudnn}.get(variant.field)


def _numbers(tile: Any) -> list[Any]:
    """The fields of a tile, or of the only rule of a table but for its sizes; none of a table without rules."""
    if isinstance(tile, tuple):
        (tile,) = tile or (None,)
    if isinstance(tile, ConvolutionRule):
        tile = tile.tile
    if isinstance(tile, GateRule):
        return [tile.folded, tile.parts, *astuple(tile.pool), *astuple(tile.gate)]
    return [] if tile is None else list(astuple(tile))


def _timed(machine: Machine, case: Case, call: Callable[..., Any]) -> float:
    """Times one call, in microseconds."""
    inputs = [case.make(Draw(torch.float16, machine.device.type, seed)) for seed in range(SETS)]
    return 1e3 * machine.time_over(call, inputs).median


def measure(machine: Machine, variant: Variant) -> float:
    def call(*arguments: Any) -> Any:
        return launch.run(variant.case.operation.plan(*arguments))

    with tried(variant):
        return _timed(machine, variant.case, call)


def _row(variant: Variant, tile: Any, time: Callable[[], float]) -> dict[str, Any]:
    row = {"case": str(variant.case), "field": variant.field, "tile": tile}
    try:
        return row | {"us": time()}
    except Exception as error:  # a tile may need more resources than the GPU has
        return row | {"failed": f"{type(error).__name__}: {error}"[:300]}


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line per case and field: the fastest three, which may include cuDNN, and the number of failures."""
    for (case, field), group in itertools.groupby(rows, lambda row: (row["case"], row["field"])):
        all_rows = list(group)
        timed = sorted((row for row in all_rows if "us" in row), key=lambda row: row["us"])
        shown = ", ".join(f"{row['tile']} {row['us']:.1f}" for row in timed[:3])
        failed = sum("failed" in row for row in all_rows)
        yield f"{field} | {case} | {shown}" + (f" | {failed} failed" if failed else "")


def write(output: Path, content: dict[str, Any]) -> None:
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _time_networks(machine: Machine, output: Path, only: str) -> None:
    chosen = settings(only)
    rows: list[dict[str, Any]] = []
    compiled = run_in_processes(_compile_fused, chosen)
    content = {"environment": environment(machine), "compiled": compiled, "networks": rows}
    for setting in chosen:
        rows.append(setting.row | attempt(partial(_fused, machine, setting)))
        click.echo(rows[-1])
        write(output, content)
        machine.free()


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The JSON file to write.")
@click.option("--networks", is_flag=True, help="Time networks with other settings instead of operations with tiles.")
@click.option("--only", default="", help="Time only what has this in its name: x16x16, fusion_gate, turbo.")
def main(output: Path, networks: bool, only: str) -> None:
    machine = find_machine()
    if isinstance(machine, str) or machine.interpreted:
        click.echo("error: this needs a GPU", err=True)
        sys.exit(2)
    if networks:
        _time_networks(machine, output, only)
        return
    ceilings = measure_ceilings(machine)
    todo = variants(only)
    compiled = run_in_processes(_compile, [(only, number) for number in range(len(todo))])
    click.echo(f"compiled {compiled['jobs']} in {compiled['seconds']:.0f} s, {len(compiled['failed'])} failed")
    rows: list[dict[str, Any]] = []
    content = dict[str, Any](environment=environment(machine), ceilings=ceilings, compiled=compiled, rows=rows)
    with arithmetic():
        for number, variant in enumerate(todo):
            if number % 20 == 0:
                write(output, content)  # saves the rows so far
            call = _cudnn_call(variant)
            if call is not None and not any(row["case"] == str(variant.case) for row in rows):
                rows.append(_row(variant, "cuDNN", partial(_timed, machine, variant.case, call)))
            rows.append(_row(variant, _numbers(variant.tile), partial(measure, machine, variant)))
    write(output, content)
    click.echo("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
