"""GPU resources of every kernel on every architecture: `python -m kernels.report` writes resources.json.

It also writes the table of the operators in README.md, from their records in `kernels.cases`. Needs no GPU: everything
is compiled ahead of time, in the launch configurations that the network uses. resources.json tells the Triton release
and the sources that it belongs to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton

from kernels.cases import OPERATIONS, needs_tma, network_cases, own_cases, prepared_cases, student_cases
from kernels.cases.convolution import convolve
from kernels.cases.record import Case, Draw
from kernels.compile import SHARED_MEMORY, Signature, compile_signature, signature_of
from kernels.launch import assumed
from kernels.tiles import ARCHITECTURES

FOLDER = Path(__file__).parent
RESOURCES = FOLDER / "resources.json"
README = FOLDER / "README.md"
BEGIN, END = "<!-- operators -->", "<!-- /operators -->"
NOT_COMPILED = ("__init__.py", "report.py", "checks.py")
# Channels and groups of the presets "base" and "tiny", and the precisions that each is compiled for.
NETWORKS = (
    (128, 32, torch.float16),
    (32, 8, torch.float16),
    (128, 32, torch.bfloat16),
    (128, 32, torch.float32),
)
# For the float16 calls that networks make only on a GPU: channels, groups and timesteps of "base" and "turbo", and
# whether they end with tanh; channels of "nano".
OWN = ((128, 32, 3, True), (32, 8, 1, False))
STUDENT = 32
SIZE = 256
TMA = 90  # the first architecture that has it
# Convolutions that cuDNN computes on architectures without measured tiles. They are compiled even there, with the
# default tile, from which a first measurement starts.
UNTUNED = (
    convolve(1, 32, 32, 128, 128, relu=True),
    convolve(1, 32, 32, 128, 128, residual=True),
    convolve(2, 32, 32, 64, 64, more=32, last=32, with_statistics=True),
    convolve(6, 128, 128, 64, 64, with_statistics=True),
)


def sources_hash() -> str:
    """SHA-256 of the sources in this folder that determine what is compiled."""
    digest = sha256()
    for file in sorted(FOLDER.rglob("*.py")):
        name = file.relative_to(FOLDER).as_posix()
        if name not in NOT_COMPILED:
            digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _cases(architecture: int) -> Iterator[tuple[Case, torch.dtype]]:
    """Every call of the networks on `architecture`, which is assumed, with its precision."""
    for channels, groups, dtype in NETWORKS:
        yield from ((case, dtype) for case in network_cases(channels, groups, SIZE, SIZE))
    half = torch.float16
    for channels, groups, steps, tanh in OWN:
        cases = own_cases(channels, groups, SIZE, SIZE, half, steps=steps, tanh=tanh)
        yield from ((case, half) for case in cases)
    yield from ((case, half) for case in (*student_cases(STUDENT, SIZE, SIZE, half), *UNTUNED))
    for channels, _, steps, _ in OWN:
        # What was not measured anywhere is compiled everywhere.
        cases = prepared_cases(channels, 2 * steps, SIZE, SIZE)
        yield from ((case, half) for case in cases if architecture >= TMA or not needs_tma(case))


def signatures(architecture: int) -> dict[Signature, tuple[Case, torch.dtype]]:
    """Every distinct signature that the networks launch on `architecture`, with one case that launches it."""
    found: dict[Signature, tuple[Case, torch.dtype]] = {}
    with assumed(architecture):
        for case, dtype in _cases(architecture):
            for launch in case.operation.plan(*case.make(Draw(dtype, "meta")))[1]:
                found.setdefault(signature_of(launch), (case, dtype))
    return found


def rows(architecture: int) -> list[dict[str, Any]]:
    """One row per binary for `architecture`."""
    result = []
    for signature, (case, dtype) in signatures(architecture).items():
        resources = asdict(compile_signature(signature, architecture))
        del resources["ptx"]
        result.append(
            {
                "kernel": signature.kernel.__name__,
                "of": str(case),
                "dtype": str(dtype).removeprefix("torch."),
                "architecture": architecture,
                "warps": signature.warps,
                "constants": {name: value for name, value in signature.constants if value is not None},
                **resources,
            }
        )
    return result


def write(table: Iterable[dict[str, Any]], path: Path) -> None:
    """Writes the file, one row per line for readable diffs."""
    head = json.dumps({"triton": triton.__version__, "sources": sources_hash()})[1:-1]
    lines = ",\n".join(f"  {json.dumps(row)}" for row in table)
    temporary = path.with_suffix(".part")
    temporary.write_text(f'{{{head}, "rows": [\n{lines}\n]}}\n')
    temporary.replace(path)


def summary(table: Iterable[dict[str, Any]]) -> str:
    """Markdown table of each kernel's largest needs on each architecture."""
    worst: dict[tuple[str, int], dict[str, Any]] = {}
    for row in table:
        largest = worst.setdefault((row["kernel"], row["architecture"]), dict.fromkeys(("registers", "shared"), 0))
        for name in largest:
            largest[name] = max(largest[name], row[name])
    architectures = sorted({architecture for _, architecture in worst})
    lines = [
        "Largest number of registers per thread / bytes of shared memory per block:",
        "",
        f"| kernel | {' | '.join(f'sm_{number}' for number in architectures)} |",
        f"| --- {'| ---: ' * len(architectures)}|",
    ]
    for kernel in dict.fromkeys(name for name, _ in worst):
        # Not every architecture has tiles for every kernel.
        needs = [worst.get((kernel, number)) for number in architectures]
        cells = ["" if need is None else f"{need['registers']} / {need['shared']}" for need in needs]
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    limits = [f"{SHARED_MEMORY[number] // 1024} KB" for number in architectures]
    lines.append(f"| *limit of shared memory* | {' | '.join(limits)} |")
    return "\n".join(lines)


def with_operators(text: str) -> str:
    """README.md's `text` with the table of the operators made anew between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README.name} has no {BEGIN} ... {END}")
    lines = ["| operator `dmfnet::` | what it does | passes over feature maps |", "| --- | --- | --- |"]
    lines += [f"| `{operation.name}` | {operation.does} | {operation.passes} |" for operation in OPERATIONS]
    return "\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"])


def main() -> None:
    README.write_text(with_operators(README.read_text()))
    workers = min(len(ARCHITECTURES), os.cpu_count() or 1)
    table: list[dict[str, Any]] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for architecture, part in zip(ARCHITECTURES, pool.map(rows, ARCHITECTURES), strict=True):
            print(f"sm_{architecture}: {len(part)} binaries, {sum(row['spills'] for row in part)} bytes spilled")
            table += part
    write(table, RESOURCES)
    print(summary(table))


if __name__ == "__main__":
    main()
