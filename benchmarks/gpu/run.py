"""Runs every measurement and check that needs a GPU: `python -m benchmarks.gpu -o RESULTS.json`.

These are the machine's properties and best rates, profiles of fusions, whole fusions compared with alternatives, checks
of every operation and of whole networks against their references, and the time of every operation compared with eager
PyTorch. Whatever fails its check is not timed. The most informative steps come first, because GPU time may be short.
The file is rewritten after every step, so that a stopped run leaves its results; "running" names the current step.
Exits with 1 if anything was wrong, and with 2 without a GPU.

With TRITON_INTERPRET=1, the script runs a few small cases on a CPU, to test itself: the file says "interpreted", and
its times are no measurements.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu import fusions as gpu_fusions
from benchmarks.gpu import images as gpu_images
from benchmarks.gpu import kernels as gpu_kernels
from benchmarks.gpu import networks as gpu_networks
from benchmarks.gpu import profile as gpu_profile
from benchmarks.gpu.compile import compile_all
from benchmarks.gpu.machine import Machine, environment, find_machine, measure_ceilings
from dmfnet_fast import __version__
from dmfnet_fast.artifacts.atomic import replacing
from kernels.cases import OPERATIONS
from kernels.checks import tolerance

SECTIONS = ("profile", "fusions", "pictures", "checks", "kernels")
WRONG, NO_GPU = 1, 2  # exit codes
LONGEST_MESSAGE = 1000  # characters of an error


@dataclass(frozen=True)
class Step:
    """One row of the results.

    Attributes:
        section, table: where the row belongs; the table is the section itself, or a part of it.
        row: the entries that identify the row.
        run: computes the other entries.
        show: summarizes those in one line.
    """

    section: str
    table: str
    row: dict[str, Any]
    run: Callable[[], dict[str, Any]]
    show: Callable[[dict[str, Any]], str]

    def __str__(self) -> str:
        return f"{self.table}: {', '.join(str(value) for value in self.row.values())}"


def _show_case(row: dict[str, Any]) -> str:
    errors = [
        f"{dtype} {error if isinstance(error, str) else f'{error:.2f}'}" for dtype, error in row["errors"].items()
    ]
    return f"{'right' if row['within'] else 'WRONG'}, error over tolerance {', '.join(errors)}"


def _decibel(row: dict[str, Any]) -> str:
    return "equal" if row["psnr"] is None else f"{row['psnr']:.1f} dB"


def _show_network(row: dict[str, Any]) -> str:
    bits = "same bits twice" if row["same_bits"] else "OTHER BITS the second time"
    return f"{'right' if row['within'] else 'WRONG'}, max error {row['max_abs']:.1e}, {_decibel(row)}, {bits}"


def _show_kernel(row: dict[str, Any]) -> str:
    return (
        f"{1e3 * row['ms']:.1f} µs, {row['bytes_per_second'] / 1e9:.0f} GB/s ({row['of_copy_rate']:.0%} of a copy), "
        f"eager {1e3 * row['eager']['ms']:.1f} µs"
    )


def _show_fusion(row: dict[str, Any]) -> str:
    return f"{row['ms']:.3f} ms, {row['of_floor']:.2f} times the floor, max error {row['max_abs']:.1e}, {_decibel(row)}"


def _show_profile(row: dict[str, Any]) -> str:
    first = row["kernels"][0]
    return (
        f"{row['ms']:.3f} ms, of which {row['kernels_ms']:.3f} in {row['launches']:.0f} kernels; "
        f"most in {first['calls']:.0f} of {first['kernel'][:60]}: {first['us']:.0f} µs"
    )


def _show_images(row: dict[str, Any]) -> str:
    others = "on the GPU" if row["way"] == gpu_images.RULES_ON_CPU else "on the CPU"
    same = "the same pixels as" if row["within"] else "OTHER PIXELS than"
    return f"{row['ms']:.3f} ms a call, {same} with the rules {others}"


def steps(machine: Machine) -> Iterator[Step]:
    """All steps, in order of execution."""
    networks = gpu_networks.Networks(machine)
    for fused in gpu_profile.profiled_cases(machine):
        row: dict[str, Any] = {"network": fused.network, "size": fused.size, "batch": fused.batch}
        yield Step("profile", "profile", row, partial(gpu_profile.measure, fused, networks), _show_profile)
    fusions = [
        Step(
            "fusions",
            "fusions",
            {"network": fusion.network, "size": fusion.size, "batch": fusion.batch}
            | {"way": variant.name, "precision": variant.precision},
            partial(gpu_fusions.measure, variant, fusion, networks),
            _show_fusion,
        )
        for fusion, variant in gpu_fusions.rows(machine)
    ]
    yield from fusions[: gpu_fusions.FIRST_ROWS]
    for name, image_variant in gpu_images.rows(machine):
        row = {"network": name, "way": image_variant}
        yield Step("pictures", "pictures", row, partial(gpu_images.measure, name, image_variant), _show_images)
    for weights in gpu_networks.checked_weights(machine):
        for precision in gpu_networks.PRECISIONS:
            for captured in (False,) if machine.interpreted else (False, True):
                row = {"weights": weights, "precision": precision, "way": "CUDA graph" if captured else "launched"}
                run = partial(gpu_networks.check, weights, precision, captured, networks)
                yield Step("checks", "networks", row, run, _show_network)
    for case, dtypes in gpu_kernels.checked_cases(machine):
        row = {"operation": case.operation.name, "case": case.name}
        yield Step("checks", "operations", row, partial(gpu_kernels.check, case, dtypes, machine), _show_case)
    for case in gpu_kernels.timed_cases(machine):
        row = {"operation": case.operation.name, "case": case.name, "dtype": "float16"}
        yield Step("kernels", "kernels", row, partial(gpu_kernels.measure, case, machine), _show_kernel)
    yield from fusions[gpu_fusions.FIRST_ROWS :]


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the row, or the message of the exception under "failed"."""
    try:
        return run()
    except Exception as error:  # drivers and compilers may raise anything; it is recorded, and the run continues
        return {"failed": f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE]}


def _wrong(step: Step, row: dict[str, Any]) -> bool:
    """Whether a result is wrong. A fusion may fail, because it may need more memory than the GPU has."""
    return "refused" in row or row.get("within") is False or (step.section != "fusions" and "failed" in row)


def _plain(value: Any) -> Any:
    """Replaces infinities and NaN, which JSON lacks, with strings."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class Results:
    """The content of the results file."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def new(cls, path: Path, machine: Machine, minutes: float) -> Results:
        content: dict[str, Any] = {
            "version": __version__,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "interpreted": machine.interpreted,
            "minutes": minutes,
            "running": "environment",
            "environment": environment(machine),
            "tolerances": {gpu_kernels.name_of(dtype): tolerance(dtype) for dtype in gpu_kernels.DTYPES},
            "limits": {name: {"max_abs": x.max_abs, "psnr": x.psnr} for name, x in gpu_networks.LIMITS.items()},
            "ceilings": {},
            "compiled": {},
            "profile": [],
            "checks": {"operations": [], "networks": []},
            "kernels": [],
            "fusions": [],
            "pictures": [],
            "left_out": [],
        }
        return cls(path, content)

    def table(self, step: Step) -> list[dict[str, Any]]:
        section = self.content[step.section]
        return section[step.table] if isinstance(section, dict) else section

    def write(self) -> None:
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(_plain(self.content), indent=1, allow_nan=False) + "\n")


def _lines(head: str, table: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f"| {head} |"
    yield "| --- " * (head.count("|") + 1) + "|"
    for cells in table:
        yield f"| {' | '.join(cells)} |"


def summary(content: dict[str, Any]) -> str:
    """Markdown: counts of checks, failures, totals by operation, and a table of fusions."""
    lines = []
    for name, rows in content["checks"].items():
        wrong = [row for row in rows if not row.get("within")]
        lines.append(f"Checks of {name}: {len(rows) - len(wrong)} of {len(rows)} right.")
        lines += [f"- wrong: {', '.join(map(str, row.values()))}" for row in wrong]
    timed = [row for row in content["kernels"] if "ms" in row]
    lines += [f"- not timed: {', '.join(map(str, row.values()))}" for row in content["kernels"] if "ms" not in row]
    sums = []
    for name in dict.fromkeys(row["operation"] for row in timed):
        rows = [row for row in timed if row["operation"] == name]
        ms, eager = sum(row["ms"] for row in rows), sum(row["eager"]["ms"] for row in rows)
        rate = sum(row["bytes"] for row in rows) / ms * 1e3
        share = rate / content["ceilings"]["copy"]["bytes_per_second"]
        numbers = (f"{1e3 * ms:.0f}", f"{1e3 * eager:.0f}", f"{ms / eager:.2f}", f"{rate / 1e9:.0f}", f"{share:.0%}")
        sums.append((name, str(len(rows)), *numbers))
    if sums:
        lines += ["", *_lines("operation | calls | µs | eager µs | ratio | GB/s | of a copy", sums)]
    fusions = []
    for row in content["fusions"]:
        case = f"{row['network']} {row['size']} x{row['batch']}"
        if "ms" not in row:
            reason = row.get("failed") or row["refused"]
            fusions.append((case, row["way"], reason.splitlines()[0][:60].replace("|", "/"), *[""] * 5))
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        memory = f"{row['peak_mb']:.0f}" if "peak_mb" in row else ""
        ms = f"{row['ms']:.3f} ({row['iqr_ms']:.3f})"
        quality = f"{row['max_abs']:.1e}", _decibel(row)
        fusions.append((case, row["way"], ms, ratio, f"{row['of_floor']:.2f}", memory, *quality))
    if fusions:
        lines += ["", *_lines("fusion | way | ms (IQR) | ratio | x floor | peak MB | max error | PSNR", fusions)]
    images = [
        (row["network"], row["way"], f"{row['ms']:.3f} ({row['iqr_ms']:.3f})")
        for row in content["pictures"]
        if "ms" in row
    ]
    if images:
        lines += ["", *_lines("pictures in and out, 256x256 | way | ms a call (IQR)", images)]
    if content["left_out"]:
        lines += ["", f"Left out: {len(content['left_out'])} steps."]
    if content["interpreted"]:
        lines += ["", "Interpreted on a CPU: no time is a measurement."]
    return "\n".join(lines)


def _interpret_no_networks() -> None:
    """Makes the torch operators run their references on the CPU: interpreted, a network takes minutes."""
    for operation in OPERATIONS:
        operation.operator.register_kernel("cpu", operation.reference)


def run(machine: Machine, results: Results, chosen: tuple[str, ...], deadline: float) -> bool:
    """Runs the steps of the `chosen` sections that can start before `deadline`; returns whether all were right."""
    content, begun, right = results.content, time.monotonic(), True
    content["running"] = "ceilings"
    results.write()
    content["ceilings"] = measure_ceilings(machine)
    rates = [f"copy {machine.copy_rate / 1e9:.0f} GB/s"]
    rates += [f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in machine.matrix_rates.items()]
    click.echo(f"ceilings: {', '.join(rates)}")
    content["running"] = "compilation"
    results.write()
    content["compiled"] = attempt(partial(compile_all, machine, "checks" in chosen))
    click.echo(f"compiled: {content['compiled']}")
    todo = [step for step in steps(machine) if step.section in chosen]
    for number, step in enumerate(todo):
        if time.monotonic() > deadline:
            content["left_out"] = [str(late) for late in todo[number:]]
            break
        content["running"] = str(step)
        results.write()
        row = step.row | attempt(step.run)
        results.table(step).append(row)
        gpu_fusions.add_ratios(content["fusions"])
        right = right and not _wrong(step, row)
        reason = row.get("failed") or row.get("refused")
        shown = reason.splitlines()[0] if reason else step.show(row)
        click.echo(f"{time.monotonic() - begun:5.0f} s  {step}: {shown}")
        if "failed" in row and not machine.works():
            content["left_out"] = [f"{late} (the GPU stopped working)" for late in todo[number + 1 :]]
            break
        machine.free()
    content["running"] = None
    results.write()
    return right


@click.command(help=(__doc__ or "").partition("\n\n")[0])
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The JSON file to write.")
@click.option(
    "--minutes", type=float, default=9.0, show_default=True, help="Start no step after this number of minutes."
)
@click.option(
    "--only",
    type=click.Choice(SECTIONS),
    multiple=True,
    help="Run only this section (repeatable); rows are checked all the same.",
)
def main(output: Path, minutes: float, only: tuple[str, ...]) -> None:
    deadline = time.monotonic() + 60 * minutes
    machine = find_machine()
    if isinstance(machine, str):
        click.echo(f"error: {machine}", err=True)
        sys.exit(NO_GPU)
    if machine.interpreted:
        _interpret_no_networks()
    results = Results.new(output, machine, minutes)
    click.echo(", ".join(f"{name} {value}" for name, value in results.content["environment"].items()))
    gc.freeze()  # excludes imported objects from the collection in every step
    right = run(machine, results, only or SECTIONS, deadline)
    click.echo(f"\n{summary(results.content)}")
    sys.exit(0 if right else WRONG)
