"""Condenses a benchmark run: `python -m benchmarks.report RUN.json` writes results, tables and plot.

Reads pytest-benchmark's JSON; writes `benchmarks/results/<version>-<machine>.json` and `.svg`, and the table between
two markers in docs/benchmarks.md. Ratios are of medians of one run. Whole volumes have results and a table of their
own, `<version>-volume.json`; a run of `benchmarks/test_volumes.py` alone renews only those.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.test_runtime import MATRIX
from benchmarks.variants import gigaflop
from dmfnet_fast import __version__

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
VOLUME, VOLUME_BEGIN, VOLUME_END = "volume ", "<!-- volume: begin -->", "<!-- volume: end -->"
MATMUL_GIGAFLOP = 2 * MATRIX**3 / 1e9
COMPARED_WITH = ("as published", "as trained")
LIBRARIES = ("torch", "openvino", "onnxruntime", "numpy")


def processor() -> str:
    """Name of the processor, from Linux or the platform module."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return (found[1] if found else platform.processor() or platform.machine()).strip()


def features() -> list[str]:
    """Processor features that determine the speed."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "asimd") if name in flags]


def condense(run: dict[str, Any]) -> dict[str, Any]:
    """Condenses pytest-benchmark's JSON, without anything that identifies the machine's owner."""
    rows, other_rows = [], []
    for benchmark in run["benchmarks"]:
        stats = {name: round(benchmark["stats"][name] * 1000, 3) for name in ("min", "median", "iqr")}
        stats = {f"{name}_ms": value for name, value in stats.items()} | {"rounds": benchmark["stats"]["rounds"]}
        if benchmark["group"].startswith(VOLUME):
            continue
        if "way" in benchmark["extra_info"]:
            rows.append(benchmark["extra_info"] | stats)
        else:
            other_rows.append({"group": benchmark["group"], "name": benchmark["name"]} | stats)
    reference_ms = {
        (row["network"], row["size"]): row["median_ms"]
        for row in rows
        if row["way"] in COMPARED_WITH and row["engine"] == "torch eager"
    }
    for row in rows:
        row["ratio"] = round(row["median_ms"] / reference_ms[row["network"], row["size"]], 4)
    return {
        "version": __version__,
        "date": run["datetime"][:10],
        "machine": _machine(),
        "fusions": rows,
        "others": other_rows,
    }


def _machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "features": features(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def condense_volumes(run: dict[str, Any]) -> dict[str, Any] | None:
    """Condenses what a run has of `benchmarks/test_volumes.py`; None if that is nothing."""
    seconds: dict[str, dict[str, float]] = {}
    for benchmark in run["benchmarks"]:
        if benchmark["group"].startswith(VOLUME):
            size = benchmark["group"].removeprefix(VOLUME)
            network = benchmark["name"].removeprefix("test_files_to_files[").removesuffix("]")
            measured = {**benchmark["extra_info"], "files_to_files": benchmark["stats"]["median"]}
            seconds[f"{network}, {size}"] = {step: round(value, 3) for step, value in measured.items()}
    if not seconds:
        return None
    machine = {**_machine(), "load": round(os.getloadavg()[0], 1)}
    return {"version": __version__, "date": run["datetime"][:10], "machine": machine, "seconds": seconds}


def _ms(value: float) -> str:
    """Formats milliseconds: whole from 10 on, two significant digits below."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def table(results: dict[str, Any]) -> str:
    """Markdown: the machine, and a table per network and size."""
    machine = results["machine"]
    lines = [
        f"Version {results['version']}, {results['date']}: {machine['cores']} cores of an {machine['processor']} "
        f"({', '.join(machine['features'])}), {machine['system']}, Python {machine['python']}, "
        + ", ".join(f"{name} {machine[name]}" for name in LIBRARIES)
        + ". Times are the median and the interquartile range of a whole fusion, the ratio is to the published network "
        "in the same run (of nano, to the network as trained), memory is the peak above that of the process before the "
        "engine was built, errors are of the luminance in [-1, 1] and PSNR of the 8-bit image, against that in "
        "float32. base has random weights, the others those that shipped then."
    ]
    for network, size in dict.fromkeys((row["network"], row["size"]) for row in results["fusions"]):
        lines += ["", f"**{network}, {size}x{size}**", ""]
        lines += ["| variant | engine | ms (IQR) | rounds | ratio | peak MB | max error | PSNR |", "| --- " * 8 + "|"]
        for row in results["fusions"]:
            if (row["network"], row["size"]) == (network, size):
                psnr = "equal" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
                cells = (
                    row["way"],
                    f"{row['engine']} {row['precision']}",
                    f"{_ms(row['median_ms'])} ({_ms(row['iqr_ms'])})",
                    str(row["rounds"]),
                    f"{row['ratio']:.2f}",
                    str(row["peak_mb"]),
                    f"{row['max_abs']:.1e}",
                    psnr,
                )
                lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "**The machine, and the overhead around the network**", "", "| | | ms (IQR) |", "| --- | --- | --- |"]
    for row in results["others"]:
        label = re.sub(r"^test_|\[.*", "", row["name"]) + re.sub(r"^[^[]*\[?(.*?)\]?$", r" \1", row["name"])
        lines.append(f"| {row['group']} | {label.strip()} | {row['median_ms']:.3g} ({row['iqr_ms']:.2g}) |")
    return "\n".join(lines)


def volume_table(results: dict[str, Any]) -> str:
    """Markdown: the machine, and a row for each network."""
    machine = results["machine"]
    lines = [
        f"Version {results['version']}, {results['date']}: {machine['cores']} cores of an {machine['processor']} "
        f"({', '.join(machine['features'])}), {machine['system']}, Python {machine['python']}, openvino "
        f"{machine['openvino']}, numpy {machine['numpy']}; medians of rounds in turn, at a load of {machine['load']}.",
        "",
        "| network, volume | network alone | fusing and writing | files to files | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, seconds in results["seconds"].items():
        alone, whole = seconds["network_alone"], seconds["files_to_files"]
        cells = (f"{alone:.1f} s", f"{seconds['fusing_and_writing']:.1f} s", f"{whole:.1f} s", f"{whole / alone:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def floors(results: dict[str, Any]) -> str:
    """Compares the fastest row of each precision with its arithmetic at the rate of a matrix product."""
    least = {row["name"]: row["min_ms"] for row in results["others"] if row["group"] == "rate"}
    sentences = []
    for precision in ("float32", "bfloat16"):
        rate = MATMUL_GIGAFLOP / least[f"test_matmul[{precision}]"] * 1000  # GFLOP/s
        parts = []
        for case in dict.fromkeys((row["network"], row["size"]) for row in results["fusions"]):
            rows = [r for r in results["fusions"] if (r["network"], r["size"], r["precision"]) == (*case, precision)]
            if not rows:
                continue
            fastest, floor = min(row["median_ms"] for row in rows), gigaflop(*case) / rate * 1000
            parts.append(f"{case[0]} {case[1]}x{case[1]} {floor:.0f} ms, measured {fastest / floor:.2f} of it")
        if parts:
            sentences.append(f"In {precision}, at {rate:.0f} GFLOP/s: {'; '.join(parts)}.")
    return (
        "Reference: the arithmetic of the optimized network at the rate that a matrix product of 2048x2048 reaches "
        "here; "
        "below 1 is faster than that product. " + " ".join(sentences)
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Plots each row's speedup over the published network as bars, one panel per network and size."""
    cases = list(dict.fromkeys((row["network"], row["size"]) for row in results["fusions"]))
    rows = {case: [row for row in results["fusions"] if (row["network"], row["size"]) == case] for case in cases}
    colors = {"torch eager": "#7f8fa6", "torch.compile": "#c9a227", "OpenVINO": "#2a7f62"}
    mpl.rcParams["svg.hashsalt"] = "dmfnet-fast"
    figure = Figure(figsize=(9, 0.32 * sum(len(part) + 3 for part in rows.values())), layout="constrained")
    panels = figure.subplots(len(cases), 1, sharex=True, squeeze=False, height_ratios=[len(rows[c]) + 1 for c in cases])
    for panel, case in zip(panels[:, 0], cases, strict=True):
        names = [f"{row['way']} ({row['engine']}, {row['precision']})" for row in rows[case]]
        speeds = [1 / row["ratio"] for row in rows[case]]
        bars = panel.barh(names, speeds, color=[colors[row["engine"]] for row in rows[case]])
        panel.bar_label(bars, [f"{row['median_ms']:.0f} ms" for row in rows[case]], padding=3, fontsize=7)
        panel.invert_yaxis()
        panel.margins(x=0.12)
        panel.tick_params(axis="y", labelsize=7)
        panel.set_title(f"{case[0]}, {case[1]}x{case[1]}", loc="left", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel("times as fast as published")
    figure.savefig(path, metadata={"Date": None})


def _put(content: str, begin: str, end: str) -> None:
    """Put content between two markers of the page."""
    before, _, rest = PAGE.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"{PAGE}: has no line {begin} with {end} after it")
    PAGE.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}")


def main() -> None:
    """Keep the run whose JSON is named on the command line."""
    run = json.loads(Path(sys.argv[1]).read_text())
    volumes = condense_volumes(run)
    if volumes is not None:
        _put(volume_table(volumes), VOLUME_BEGIN, VOLUME_END)
        (RESULTS / f"{__version__}-volume.json").write_text(json.dumps(volumes, indent=1) + "\n")
        print(f"benchmarks/results/{__version__}-volume.json and docs/benchmarks.md")
    results = condense(run)
    if not results["fusions"]:
        return
    machine = re.sub(r"[^a-z0-9]+", "-", f"{results['machine']['processor']} {os.cpu_count()} cores".lower())
    stem = f"{__version__}-{machine}"
    image = f"![Times as fast as the published network](../benchmarks/results/{stem}.svg)"
    _put(f"{image}\n\n{table(results)}\n\n{floors(results)}", BEGIN, END)
    (RESULTS / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, RESULTS / f"{stem}.svg")
    print(f"benchmarks/results/{stem}.json, .svg and docs/benchmarks.md")


if __name__ == "__main__":
    main()
