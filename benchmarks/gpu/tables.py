"""The tables of docs/gpu.md and of docs/benchmarks.md, made from the results of `benchmarks.gpu`.

This module only formats those results. Lower bounds are computed from the operators' shapes in the profile; for our own
operators, by the `work` functions in `kernels.cases`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from kernels.cases import OPERATIONS, RECORDS
from kernels.cases.record import HALF, Shape, Work, values

RESULTS = Path(__file__).parents[1] / "results"
NAME, OTHER_TUNING = "0.1.0-H200", "0.1.0-H100-tuning.json"
NETWORKS = ("base", "turbo", "nano")
OURS, PUBLISHED = "kernels, CUDA graph", "published, eager"
COMPILED = "published, torch.compile reduce-overhead, autocast, channels last"
OPERATORS_CAPTURED = "optimized, CUDA graph"
ON_GPU, ON_CPU = "pixels to pixels in one CUDA graph", "rules on the CPU"
BATCHES = (1, 8, 32)
OURS_FROM = 16  # input channels; with fewer we use cuDNN. A cuDNN convolution with at least this many is a strided one

Json: TypeAlias = dict[str, Any]
MARKED = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- /table -->", re.DOTALL)


@dataclass(frozen=True)
class Runs:
    """The measurements.

    Attributes:
        now: the last run.
        before: the first run, of code that had not run on a GPU before.
        tuning: candidates for tiles and rules, and two runs between the first and the last.
        checked: the run before the last: the newest one of every check, and of whole calls.
        other: what was tried on another GPU model, an H100.
    """

    now: Json
    before: Json
    tuning: Json
    checked: Json
    other: Json

    @classmethod
    def read(cls) -> Runs:
        names = f"{NAME}.json", f"{NAME}-before.json", f"{NAME}-tuning.json", f"{NAME}-checked.json", OTHER_TUNING
        return cls(*(json.loads((RESULTS / name).read_text()) for name in names))

    @property
    def all(self) -> dict[str, Json]:
        """All runs of `python -m benchmarks.gpu` by their names."""
        between = {name: self.tuning[name] for name in ("second", "third")}
        return {"first": self.before, **between, "fourth": self.checked, "last": self.now}


def fusion(run: Json, network: str, way: str, batch: int = 1) -> Json | None:
    """The row of a variant, or None if it was not timed."""
    rows = [
        row
        for row in run["fusions"]
        if (row["network"], row["way"], row["size"], row["batch"]) == (network, way, 256, batch) and "ms" in row
    ]
    return rows[0] if rows else None


def ours(run: Json, network: str) -> Json:
    row = fusion(run, network, OURS)
    assert row is not None
    return row


def images(run: Json, network: str, way: str = ON_GPU) -> Json | None:
    """The row of whole calls, or None if they were not timed."""
    rows = [row for row in run["pictures"] if (row["network"], row["way"]) == (network, way)]
    return rows[0] if rows else None


def profile(run: Json, network: str) -> Json:
    found: Json = next(row for row in run["profile"] if row["network"] == network)
    return found


def three(value: float | None) -> str:
    """Formats three significant digits; empty if not measured."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _spread(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1g}"


def _median(row: Json | None) -> str:
    return "" if row is None else f"{three(row['ms'])} ({_spread(row['iqr_ms'])})"


def _table(heads: str, rows: Iterable[Sequence[str]]) -> str:
    """Markdown table; `heads` are separated by bars, and those of right-aligned columns end in a colon."""
    names = [head.strip() for head in heads.split("|")]
    lines = [f"| {' | '.join(name.rstrip(':') for name in names)} |"]
    lines.append(f"| {' | '.join('---:' if name.endswith(':') else '---' for name in names)} |")
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines)


# Arithmetic and memory traffic of operators.


def _of_cudnn(shapes: list[Shape]) -> Work:
    (n, inputs, height, width), weight = shapes
    strided = inputs >= OURS_FROM
    out = n * height * width * weight[0] // (4 if strided else 1)
    kind = "downsampling (strided convolution)" if strided else "convolution of the interval"
    return Work(kind, 2.0 * out * math.prod(weight[1:]), HALF * (values(*shapes) + out))


def _of_transposed(shapes: list[Shape]) -> Work:
    (n, _, height, width), weight = shapes
    flop, out = 2.0 * n * height * width * math.prod(weight), 4 * n * height * width * weight[1]
    return Work("upsampling (transposed convolution)", flop, HALF * (values(*shapes) + out))


def _of_product(shapes: list[Shape]) -> Work:
    (rows, inner), (_, columns) = shapes[-2:]
    return Work("matrix product", 2.0 * rows * inner * columns, HALF * (values(*shapes) + rows * columns))


COUNTED: dict[str, Callable[[list[Shape]], Work]] = {
    **{operation.name: operation.work for operation in OPERATIONS},
    "cudnn_convolution": _of_cudnn,
    "cudnn_convolution_transpose": _of_transposed,
    "mm": _of_product,
    "addmm": _of_product,
}
OTHER = "PyTorch's own"  # operators that are not counted


def work(row: Json) -> Work | None:
    """Work of one call of a profiled operator of the last run; None for operators that are not counted."""
    name = row["operator"].partition("::")[2]
    return COUNTED[name](row["shapes"]) if name in COUNTED else None


def floor(done: Work, ceilings: Json) -> float:
    """Microseconds of a call at the rates that the same run measured."""
    return 1e6 * max(
        done.flop / ceilings["float16"]["flop_per_second"], done.bytes / ceilings["copy"]["bytes_per_second"]
    )


@dataclass
class Gap:
    """Measured time and lower bound, in µs per fusion, of all operators of one kind."""

    us: float = 0.0
    floor: float = 0.0


def gaps(run: Json, network: str) -> dict[str, Gap]:
    """Measured times and lower bounds by kind of operator."""
    found: dict[str, Gap] = defaultdict(Gap)
    for row in profile(run, network)["operators"]:
        done = work(row)
        gap = found[done.kind if done else OTHER]
        gap.us += row["us"]
        gap.floor += row["calls"] * floor(done, run["ceilings"]) if done else 0.0
    return found


# The tables.


def _rates(runs: Runs) -> str:
    rows = []
    for name, run in runs.all.items():
        ceilings = run["ceilings"]
        rates = [ceilings["copy"]["bytes_per_second"]]
        rates += [ceilings[kind]["flop_per_second"] for kind in ("float16", "bfloat16", "tf32", "float32")]
        rows.append((name, run["code"], *(three(rate / 1e12) for rate in rates)))
    heads = "run | code | copy, TB/s: | float16, TFLOP/s: | bfloat16, TFLOP/s: | TF32, TFLOP/s: | float32, TFLOP/s:"
    return _table(heads, rows)


def _checks(runs: Runs) -> str:
    rows = []
    for name, run in runs.all.items():
        counts = []
        for kind in ("operations", "networks"):
            within = [row["within"] for row in run["checks"][kind]]
            counts.append(f"{sum(within)} of {len(within)}" if within else "none")
        networks = dict.fromkeys(row["weights"] for row in run["checks"]["networks"])
        timed = sum("ms" in row for row in run.get("fusions", ()))
        rows.append((name, *counts, ", ".join(networks), str(timed) if timed else "none"))
    return _table("run | operations right | networks right | of | fusions checked, then timed", rows)


def _latency(runs: Runs) -> str:
    rows = []
    for network in NETWORKS:
        mine = ours(runs.now, network)["ms"]
        for row in runs.now["fusions"]:
            if (row["network"], row["size"], row["batch"]) != (network, 256, 1) or "ms" not in row:
                continue
            first = fusion(runs.before, network, row["way"])
            psnr = "equal" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
            quality = f"{row['max_abs']:.1e}", psnr
            cells = three(first["ms"] if first else None), _median(row), _times(row["ms"] / mine)
            name = f"**{row['way']}**" if row["way"] == OURS else row["way"]
            # Not positive for compiled variants: their graphs keep memory from before the measurement.
            memory = f"{row['peak_mb']:.0f}" if row["peak_mb"] > 0 else ""
            rows.append((network, name, row["precision"], *cells, memory, *quality))
    heads = "network | way | precision | first run, ms: | ms (IQR): | times ours: | peak MB: | max error: | PSNR:"
    return _table(heads, rows)


def _images(runs: Runs) -> str:
    rows = []
    for network in NETWORKS:
        run = runs.checked
        whole, on_cpu, mine = images(run, network), images(run, network, ON_CPU), ours(run, network)
        if whole is not None:
            more = three(whole["ms"] - mine["ms"])
            rows.append((network, _median(mine), _median(whole), more, _median(on_cpu)))
    heads = (
        "network | the network alone, ms (IQR): | whole call, ms (IQR): | more, ms: "
        "| with the rules on the CPU, ms (IQR):"
    )
    return _table(heads, rows)


def _throughput(runs: Runs) -> str:
    rows = []
    for network in NETWORKS:
        cells = []
        for batch in BATCHES:
            row = fusion(runs.now, network, OURS, batch)
            cells.append("not measured" if row is None else f"{1e3 * batch / row['ms']:.0f}")
        whole = images(runs.checked, network)
        rows.append((network, *cells, "not measured" if whole is None else f"{1e3 / whole['ms']:.0f}"))
    heads = [f"batch {batch}, pairs/s:" for batch in BATCHES]
    return _table(f"network | {' | '.join(heads)} | whole calls one after another, pairs/s:", rows)


def _floor(runs: Runs) -> str:
    rows = []
    for network in NETWORKS:
        row, ceilings = ours(runs.now, network), runs.now["ceilings"]
        arithmetic = row["ms"] / row["of_floor"]  # as counted by the benchmark
        done = [(one["calls"], work(one)) for one in profile(runs.now, network)["operators"]]
        moved = sum(calls * each.bytes for calls, each in done if each)
        by_bytes = 1e3 * moved / ceilings["copy"]["bytes_per_second"]
        apart = sum(gap.floor for gap in gaps(runs.now, network).values()) / 1e3
        counts = f"{arithmetic * ceilings['float16']['flop_per_second'] / 1e12:.1f}", f"{moved / 1e6:.0f}"
        floors = three(arithmetic), three(by_bytes), three(apart)
        ratios = _times(row["of_floor"]), _times(row["ms"] / apart)
        rows.append((network, *counts, *floors, three(row["ms"]), *ratios))
    heads = (
        "network | GFLOP: | MB: | arithmetic, ms: | bytes, ms: | operator by operator, ms: | measured, ms: "
        "| times the arithmetic: | times operator by operator:"
    )
    return _table(heads, rows)


LIBRARIES = {
    "transposed convolutions, cuDNN's": r"dgrad",
    "other convolutions, cuDNN's": r"fprop|^void convolve_|^void cudnn::",
    "matrix products, cuBLAS's": r"^nvjet|cublas|^sm\d+_xmma_gemm|splitK",
}
# Kernel groups and name patterns; the first match wins. The most expensive groups come first.
KERNELS = {
    **RECORDS["convolution"].kernels,
    **RECORDS["group_norm_silu"].kernels,
    **RECORDS["convolution_epilogue"].kernels,
    **LIBRARIES,
    **{group: pattern for record in RECORDS.values() for group, pattern in record.kernels.items()},
    "PyTorch's own, and memory set": r"",
}


def kernel_group(name: str) -> str:
    return next(group for group, pattern in KERNELS.items() if re.search(pattern, name))


def _time(runs: Runs) -> str:
    columns = [profile(run, network) for network in NETWORKS for run in (runs.before, runs.tuning["second"], runs.now)]
    sums: list[dict[str, float]] = []
    for column in columns:
        of_group: dict[str, float] = defaultdict(float)
        for kernel in column["kernels"]:
            of_group[kernel_group(kernel["kernel"])] += kernel["us"]
        sums.append(of_group)
    present = [group for group in KERNELS if any(group in column for column in sums)]
    rows = [(group, *(three(column.get(group)) for column in sums)) for group in present]
    rows.append(("**all kernels**", *(three(1e3 * column["kernels_ms"]) for column in columns)))
    rows.append(("launches", *(f"{column['launches']:.0f}" for column in columns)))
    rows.append(("**the graph, from its start to its end**", *(three(1e3 * column["ms"]) for column in columns)))
    heads = [f"{network}, {run}:" for network in NETWORKS for run in ("first", "second", "last")]
    return _table(f"µs in | {' | '.join(heads)}", rows)


def _kind_order(kind: str) -> tuple[int, int]:
    """Sort key: convolutions, then norms, each by descending size of the maps; the others keep their order."""
    found = re.search(r"(\d+)x\d+$", kind)
    place = 0 if kind.startswith("3x3") else 1 if kind.startswith("GroupNorm") else 3 if kind == OTHER else 2
    return place, -int(found[1]) if found and place < 2 else 0


def _gap(runs: Runs) -> str:
    columns = [gaps(runs.now, network) for network in NETWORKS]
    kinds = sorted(dict.fromkeys(itertools.chain(*columns)), key=_kind_order)

    def cells(gap: Gap | None) -> tuple[str, str, str]:
        if gap is None:
            return "", "", ""
        if not gap.floor:
            return three(gap.us), "", ""
        return three(gap.us), three(gap.floor), _times(gap.us / gap.floor)

    rows = [(kind, *itertools.chain(*(cells(column.get(kind)) for column in columns))) for kind in kinds]
    totals = [Gap(*map(sum, zip(*((gap.us, gap.floor) for gap in each.values()), strict=True))) for each in columns]
    rows.append(("**all**", *itertools.chain(*(cells(total) for total in totals))))
    heads = [f"{network}, µs: | {network}, floor: | times:" for network in NETWORKS]
    return _table(f"operators | {' | '.join(heads)}", rows)


def _tuned(runs: Runs, field: str) -> Iterator[tuple[str, list[Json]]]:
    rows = [row for row in runs.tuning["tuning"]["rows"] if row["field"] == field and "us" in row]
    for case, group in itertools.groupby(rows, lambda row: row["case"]):
        yield case, list(group)


def _tile(tile: Sequence[Any]) -> str:
    pixels, channels, inner, warps, stages = tile[:5]
    return f"{pixels}x{channels}x{inner}, {warps} warps, {stages} stages"


def _tile_and_rows(tile: Sequence[Any]) -> str:
    """The earlier measurements are of tiles without a number of rows."""
    rows = tile[6] if len(tile) > 6 else 0
    return _tile(tile) + (f", {rows} rows" if rows else "")


def _convolutions(runs: Runs) -> str:
    rows = []
    for case, group in _tuned(runs, "convolutions"):
        (cudnn,) = (row["us"] for row in group if row["tile"] == "cuDNN")
        best = []
        for described in (False, True):
            candidates = [row for row in group if row["tile"] != "cuDNN" and row["tile"][5] is described]
            fastest = min(candidates, key=lambda row: row["us"], default=None)
            best += [three(fastest["us"]), _tile_and_rows(fastest["tile"])] if fastest else ["", ""]
        least = min(row["us"] for row in group if row["tile"] != "cuDNN")
        shape = re.sub(r"^convolution(_with_statistics)? ", "", case)
        rows.append((shape, three(cudnn), *best, f"{least / cudnn:.2f}"))
    heads = "convolution | cuDNN's, µs: | by pointers, µs: | tile | by descriptors, µs: | tile | best / cuDNN's:"
    return _table(heads, rows)


def _small(runs: Runs) -> str:
    """The tiles in force before beside the best of all, and those in force now."""
    measured = runs.other["tiles"]["rows"]
    rows = []
    for case in dict.fromkeys(row["case"] for row in measured):
        times = {str(row["tile"]): row["us"] for row in measured if row["case"] == case and "us" in row}
        n, inputs, height, outputs = map(int, re.findall(r"(\d+)x(\d+)x(\d+)x\d+ to (\d+)", case)[0])
        before, now = (
            next(tile for most, tile in rules if inputs <= most[0] and outputs <= most[1] and n * height**2 <= most[2])
            for rules in (SMALL_BEFORE, SMALL_NOW)
        )
        best = min((tile for tile in times if tile != "cuDNN"), key=lambda tile: times[tile])
        if str(now) in times and str(before) in times:
            cells = three(times.get("cuDNN")), three(times[str(before)]), _tile(before), three(times[str(now)])
            shape = re.sub(r"^convolution(_with_statistics)? ", "", case)
            rows.append((shape, *cells, _tile(now), three(times[best])))
    heads = "convolution | cuDNN's, µs: | before, µs: | tile | now, µs: | tile | best of all, µs:"
    return _table(heads, rows)


# The largest numbers of inputs, outputs and pixels, and the tile, for the convolutions of `_small`.
SMALL_BEFORE = (
    ((64, 64, 2**10), [32, 32, 32, 4, 3, False]),
    ((32, 32, 2**13), [32, 32, 32, 2, 3, False]),
    ((128, 64, 2**13), [64, 64, 64, 4, 3, False]),
    ((512, 512, 2**12), [64, 64, 64, 4, 4, False]),
    ((512, 512, 2**15), [64, 128, 64, 4, 4, True]),
)
SMALL_NOW = (
    ((32, 32, 2**12), [32, 32, 32, 4, 5, False]),
    ((96, 64, 2**12), [32, 32, 64, 4, 4, False]),
    ((128, 64, 2**12), [32, 32, 128, 4, 4, False]),
    ((32, 32, 2**13), [32, 32, 32, 2, 5, False]),
    ((128, 64, 2**13), [32, 32, 128, 4, 3, False]),
    ((512, 512, 2**11), [64, 64, 128, 4, 4, True]),
    ((512, 512, 2**13), [64, 128, 128, 4, 4, True]),
)


def _overlapped(runs: Runs) -> str:
    found: dict[str, dict[bool, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in runs.other["overlapped"]["rows"]:
        found[row["network"]][row["overlapped"]].append(row["ms"])
    rows = []
    for network in NETWORKS:
        apart, over = found[network][False], found[network][True]
        ratio = sum(over) / sum(apart)
        rows.append((network, ", ".join(map(three, apart)), ", ".join(map(three, over)), f"{ratio:.3f}"))
    return _table("network | one after another, ms: | overlapped, ms: | ratio:", rows)


def _splits(runs: Runs) -> str:
    measured = runs.other["splits"]["rows"]
    rows = []
    for case in dict.fromkeys(row["case"] for row in measured):
        tiles = [row for row in measured if row["case"] == case and row["tile"] != "cuDNN" and "us" in row]
        best = {
            several: min(
                (row for row in tiles if (row["tile"][6] > 1) is several), key=lambda row: row["us"], default=None
            )
            for several in (False, True)
        }
        one, more = best[False], best[True]
        if one and more:
            shape = re.sub(r"^convolution(_with_statistics)? ", "", case)
            split = f"{_tile(more['tile'])}, {more['tile'][6]} programs"
            rows.append((shape, three(one["us"]), _tile(one["tile"]), three(more["us"]), split))
    return _table("convolution | by one program, µs: | tile | by several, and a launch, µs: | tile", rows)


WIDE = (
    [128, 128, 64, 8, 3, True],
    [128, 128, 64, 8, 4, True],
    [128, 128, 64, 4, 3, True],
    [256, 128, 64, 8, 3, True],
    [64, 128, 64, 4, 4, True],
)


def _stages(runs: Runs) -> str:
    rows = []
    for case, group in _tuned(runs, "convolutions"):
        times = {str(row["tile"][:6]): row["us"] for row in group}
        if all(str(tile) in times for tile in WIDE):
            shape = re.sub(r"^convolution(_with_statistics)? ", "", case)
            rows.append((shape, *(three(times[str(tile)]) for tile in WIDE)))
    return _table(f"µs | {' | '.join(f'{_tile(tile)}:' for tile in WIDE)}", rows)


def _epilogues(runs: Runs) -> str:
    tiles = ([32, 64, 4], [16, 64, 2], [32, 32, 2], [16, 64, 4], [64, 64, 4])
    rows = []
    for case, group in _tuned(runs, "epilogue"):
        times = {str(row["tile"]): row["us"] for row in group}
        rows.append((case, *(three(times[str(tile)]) for tile in tiles)))
    heads = [f"{pixels}x{channels}, {warps} warps:" for pixels, channels, warps in tiles]
    return _table(f"µs | {' | '.join(heads)}", rows)


# Of names that are too short for a table.
RULES = {
    "in force": "those in force",
    "cuDNN": "none: cuDNN's convolutions, with our epilogues",
    "wide: 8 warps": "128x128x64 by 8 warps, not 4",
    "wide: 256 pixels": "256x128x64 by 8 warps for 128x128x64 by 4",
    "small: 3 stages": "64x128x64 with 3 stages, not 4",
    "small as wide": "128x128x64 for 64x128x64",
    "cuDNN from 2^17 pixels": "cuDNN's for the denoiser's at 256x256",
    "narrow: 8 warps": "128x32x32 by 8 warps, not 4",
    "narrow: described": "128x32x32 by descriptors, 4 stages",
    "narrow: 2 stages": "128x32x32 with 2 stages, not 3",
}
STUDENT_WITHOUT_RULES = "none: our convolution all the same, 64x32x32"


def _batched(row: Json) -> str:
    """The network, and its batch unless that is a single pair, as in the earlier measurements."""
    batch = row.get("batch", 1)
    return f"{row['network']}, batch {batch}" if batch > 1 else row["network"]


def _rules(runs: Runs) -> str:
    measured = runs.tuning["networks"]["rows"]
    present = {_batched(row): row["ms"] for row in measured if row["rules"] == "in force"}
    rows = []
    for row in sorted(measured, key=lambda row: NETWORKS.index(row["network"])):
        if "ms" not in row:  # failed, or refused because its image was wrong
            continue
        name, network = row["rules"], row["network"]
        rules = STUDENT_WITHOUT_RULES if (name, network) == ("cuDNN", "nano") else RULES.get(name, name)
        milliseconds, ratio = row["ms"], row["ms"] / present[_batched(row)]
        rows.append((_batched(row), rules, f"{milliseconds:.4f} ({_spread(row['iqr_ms'])})", f"{ratio:.3f}"))
    return _table("network | rules | ms (IQR): | ratio:", rows)


class _Costs:
    """Microseconds per call of operators in a network's profile."""

    def __init__(self, run: Json, network: str) -> None:
        self._rows = {
            (row["operator"].partition("::")[2], str(row["shapes"])): row for row in profile(run, network)["operators"]
        }

    def row(self, name: str, *shapes: Shape) -> Json | None:
        return self._rows.get((name, str(list(shapes))))

    def __call__(self, name: str, *shapes: Shape) -> float:
        row = self._rows[name, str(list(shapes))]
        return float(row["us"]) / float(row["calls"])


def _alone(first: _Costs, last: _Costs, x: Shape, weight: Shape) -> float:
    """Time per call of cuDNN's convolution in the first run, without the strided convolution of the same shapes."""
    both, strided = first.row("cudnn_convolution", x, weight), last.row("cudnn_convolution", x, weight)
    assert both is not None
    us, calls = (both[key] - (strided[key] if strided else 0) for key in ("us", "calls"))
    return float(us) / float(calls)


@dataclass(frozen=True)
class Convolution:
    """A convolution of a denoiser's block.

    Attributes:
        inputs, outputs: channels, in multiples of the network's.
        side: height and width of the feature map.
        after: what follows it: "statistics", "residual" or "two shortcuts".
    """

    inputs: int
    outputs: int
    side: int
    after: str

    def costs(self, first: _Costs, last: _Costs, n: int, channels: int) -> tuple[float, float, float]:
        """Microseconds of cuDNN's convolution alone, of the same with its surrounding operators, and of ours."""
        inputs, outputs, side = self.inputs * channels, self.outputs * channels, self.side
        x, weight, out = [n, inputs, side, side], [outputs, inputs, 3, 3], [n, outputs, side, side]
        alone = _alone(first, last, x, weight)
        if self.after == "statistics":
            parts = min(256, max(side * side // 32, 1))
            parameters = [outputs], [outputs]
            reading = first("group_norm_silu", out, [n // 2, outputs], *parameters)
            reading -= first("group_norm_silu", out, [n, parts, 2, outputs], *parameters)
            return alone, alone + reading, last("convolution_with_statistics", x, weight)
        if self.after == "residual":
            epilogue = first("convolution_epilogue_with_statistics", out, [outputs], out)
            return alone, alone + epilogue, last("convolution_with_statistics", x, weight, [outputs], out)
        rows, square = n * side * side, [outputs, outputs]
        shortcuts = first("addmm", [outputs], [rows, outputs], square)
        shortcuts += first("addmm_", [rows, outputs], [rows, outputs], square)
        shortcuts += first("convolution_epilogue_with_statistics", out, out)
        pair = [out, [*square, 1, 1]]
        return alone, alone + shortcuts, last("convolution_with_statistics", x, weight, *pair, *pair, [outputs])


INSIDE = (
    *(Convolution(1, 1, side, "statistics") for side in (256, 128, 64, 32)),
    Convolution(2, 2, 16, "statistics"),
    *(Convolution(2, 1, side, "statistics") for side in (256, 128, 64, 32)),
    Convolution(3, 1, 32, "statistics"),
    Convolution(3, 2, 16, "statistics"),
    Convolution(4, 2, 16, "statistics"),
    *(Convolution(1, 1, side, "residual") for side in (256, 128, 64, 32)),
    Convolution(2, 2, 16, "residual"),
    *(Convolution(1, 1, side, "two shortcuts") for side in (256, 128, 64, 32)),
    Convolution(2, 2, 16, "two shortcuts"),
)
WIDTHS = {"base": (6, 128), "turbo": (2, 32)}  # images of a batch, channels


def _inside(runs: Runs) -> str:
    rows = []
    for convolution in INSIDE:
        cells: list[str] = []
        for network, (n, channels) in WIDTHS.items():
            first, last = _Costs(runs.before, network), _Costs(runs.now, network)
            cells += map(three, convolution.costs(first, last, n, channels))
        name = f"{convolution.inputs}C to {convolution.outputs}C, {convolution.side}x{convolution.side}"
        rows.append((name, convolution.after, *cells))
    heads = [f"{name}: cuDNN's alone, µs: | {name}: with what surrounds it: | {name}: ours:" for name in WIDTHS]
    return _table(f"3x3 convolution | and | {' | '.join(heads)}", rows)


def _folding(runs: Runs) -> str:
    rows = []
    for side, wide, parts in ((32, 1, 32), (16, 2, 8)):
        for joint in (False, True):
            cells: list[str] = []
            for network, (n, channels) in WIDTHS.items():
                own = wide * channels
                known = [[n, own, side, side], [n, parts, 2, own]] * (2 if joint else 1)
                width = [own * (2 if joint else 1)]
                costs = [_Costs(run, network) for run in (runs.before, runs.tuning["second"])]
                cells += [three(cost("group_norm_silu", *known, width, width)) for cost in costs]
            rows.append((f"{wide}C{f' beside {wide}C' if joint else ''}, {side}x{side}", str(parts), *cells))
    heads = [f"{network}: a launch of its own, µs: | {network}: folded:" for network in WIDTHS]
    return _table(f"norm of | parts: | {' | '.join(heads)}", rows)


def _goals(runs: Runs) -> str:
    def reached(value: float, limit: float, least: bool = False) -> str:
        if (value >= limit) if least else (value <= limit):
            return "yes"
        return f"no: {max(value / limit, limit / value):.2f} times"

    rows = []
    for network, limit in (("base", 3.3), ("turbo", 0.7), ("nano", 0.15)):
        mine = ours(runs.now, network)["ms"]
        rows.append((f"{network}: a pair of 256x256", f"at most {limit} ms", f"{three(mine)} ms", reached(mine, limit)))
    for network in ("turbo", "nano"):
        whole = images(runs.checked, network)
        if whole is not None:
            more = whole["ms"] - ours(runs.checked, network)["ms"]
            what = f"{network}: 8-bit images in and out, besides"
            rows.append((what, "at most 0.5 ms", f"{three(more)} ms", reached(more, 0.5)))
    mine, eager, compiled = (fusion(runs.now, "base", way) for way in (OURS, PUBLISHED, COMPILED))
    if mine and eager:
        times = eager["ms"] / mine["ms"]
        rows.append(("base: times as fast as eager mode", "at least 8", f"{times:.1f}", reached(times, 8, True)))
    if mine and compiled:
        measured = f"not measured; reduce-overhead: {compiled['ms'] / mine['ms']:.1f}"
        rows.append(("base: times as fast as torch.compile, max-autotune", "at least 2", measured, "not known"))
    return _table("what | goal | measured | reached", rows)


def _short(runs: Runs) -> str:
    """The table in docs/benchmarks.md."""
    rows = []
    for network in NETWORKS:
        others = [fusion(runs.now, network, way) for way in (PUBLISHED, COMPILED, OPERATORS_CAPTURED)]
        cells = [three(row["ms"] if row else None) or "not measured" for row in others]
        whole = images(runs.checked, network)
        mine = three(ours(runs.now, network)["ms"])
        rows.append((network, *cells, f"**{mine}**", three(whole["ms"] if whole else None) or "not measured"))
    heads = (
        "ms for a pair of 256x256 | as published, eager, float32: | the same, torch.compile reduce-overhead, float16: "
        "| optimized, PyTorch's operators, CUDA graph, float16: | our kernels, CUDA graph, float16: "
        "| whole call, 8-bit in and out:"
    )
    return _table(heads, rows)


TABLES: dict[str, Callable[[Runs], str]] = {
    "rates": _rates,
    "checks": _checks,
    "latency": _latency,
    "pictures": _images,
    "throughput": _throughput,
    "floor": _floor,
    "time": _time,
    "gap": _gap,
    "convolutions": _convolutions,
    "stages": _stages,
    "small": _small,
    "overlapped": _overlapped,
    "splits": _splits,
    "epilogues": _epilogues,
    "rules": _rules,
    "inside": _inside,
    "folding": _folding,
    "goals": _goals,
    "short": _short,
}


def filled(text: str, runs: Runs) -> str:
    """Returns `text` with every table between markers regenerated."""

    def table(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n\n{TABLES[found[1]](runs)}\n\n<!-- /table -->"

    return MARKED.sub(table, text)
