"""Times the page in a browser: `python -m benchmarks.web --write` measures and renews the table in docs/benchmarks.md.

The network in Chromium on WASM, against OpenVINO and ONNX Runtime in Python with as many threads in the same run; and
the time from opening the page to the first fused image. Needs Chromium, Node.js and npm.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks.report import PAGE, RESULTS, features, processor
from dmfnet_fast import __version__
from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.network_inputs import network_inputs
from dmfnet_fast.artifacts.onnx_metadata import properties
from dmfnet_fast.commands.view import pair_site
from dmfnet_fast.engines import DEFAULT, open_engine, shipped
from dmfnet_fast.errors import EngineError
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.images.io import write_image
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.web import building
from dmfnet_fast.web.server import Server

BEGIN, END = "<!-- web: begin -->", "<!-- web: end -->"
SIZE, ROUNDS = 256, 40
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _milliseconds(run: Callable[[], Any]) -> list[float]:
    """Times of ROUNDS runs, after two to warm up."""
    times = []
    for _ in range(ROUNDS + 2):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1000)
    return times[2:]


def _in_browser(folder: Path, pair: list[Path]) -> dict[str, Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise EngineError("Chromium is not installed: apt-get install chromium")
    tools = folder / "tools"
    try:
        building.install(tools)
    except building.BuildError as error:
        raise EngineError(str(error)) from error
    files, place = pair_site(pair[0], pair[1], DEFAULT)
    script = Path(__file__).with_name("web.mjs")
    single, several = (Server(files, isolated=isolated) for isolated in (False, True))
    with single.in_background() as alone, several.in_background() as url:
        given = {"chromium": program, "page": [alone, url], "opened": url + place, "rounds": ROUNDS}
        done = subprocess.run(
            ["node", str(script), str(tools)],
            input=json.dumps({**given, "pair": list(map(str, pair))}),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise EngineError(f"the browser failed: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _in_python(threads: int) -> dict[str, list[float]]:
    """Times of the network in float32 on the libraries of Python."""
    import onnxruntime

    path = shipped()[DEFAULT].with_suffix(".onnx")
    head = make_phantom(0, SIZE)
    interface = interface_of(json.loads(properties(path.read_bytes())["config"]))
    inputs, _ = network_inputs(interface, [Canvas(head.mri, head.pet)])
    engine = open_engine(path, "cpu", "float32", threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    times = {
        "OpenVINO": _milliseconds(lambda: engine.run(inputs)),
        "ONNX Runtime": _milliseconds(lambda: session.run(None, inputs)),
    }
    engine.close()
    return times


def _summary(times: list[float]) -> dict[str, float]:
    quarters = statistics.quantiles(times, n=4)
    return {
        "min_ms": round(min(times), 2),
        "median_ms": round(statistics.median(times), 2),
        "iqr_ms": round(quarters[2] - quarters[0], 2),
    }


def measure() -> dict[str, Any]:
    """Measure everything; one run, so that ratios are of one machine in one state.

    Raises:
        EngineError: the browser or npm is missing or fails.
    """
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        head = make_phantom(0, SIZE)
        pair = [folder / "mri.png", folder / "pet.png"]
        for path, image in zip(pair, (head.mri, head.pet), strict=True):
            write_image(path, image)
        found = _in_browser(folder, pair)
    rows = []
    for one in found["times"]:
        rows.append({"engine": "browser, WASM", "threads": one["threads"], **_summary(one["network"])})
        rows += [
            {"engine": name, "threads": one["threads"], **_summary(times)}
            for name, times in _in_python(one["threads"]).items()
        ]
    return {
        "version": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "processor": processor(),
            "features": features(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "load": load,
            "browser": f"Chromium {found['browser']}",
            **{name: version(name) for name in ("openvino", "onnxruntime")},
            "onnxruntime-web": json.loads((building.SOURCES / "package.json").read_text())["dependencies"][
                "onnxruntime-web"
            ],
        },
        "network": DEFAULT,
        "size": SIZE,
        "rows": rows,
        "first_image_ms": _summary(found["first"]),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine = results["machine"]
    libraries = ", ".join(f"{name} {machine[name]}" for name in ("onnxruntime-web", "openvino", "onnxruntime"))
    busy = f" Other processes ran, too: the load was {machine['load']}." if machine["load"] > 1 else ""
    lines = [
        f"Version {results['version']}, {results['date']}: {machine['browser']}, headless, "
        f"{machine['cores']} cores of an {machine['processor']} ({', '.join(machine['features'])}), "
        f"{machine['system']}, {libraries}. "
        f"{results['network']} at {results['size']}x{results['size']} in float32, the network alone, {ROUNDS} runs. "
        f"The ratio is of the fastest runs, which other processes on the machine disturb least.{busy}",
        "",
        "| threads | engine | fastest, ms | median, ms (IQR) | times OpenVINO's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        base = next(r for r in results["rows"] if (r["engine"], r["threads"]) == ("OpenVINO", row["threads"]))
        times = f"{row['min_ms']:.3g} | {row['median_ms']:.3g} ({row['iqr_ms']:.2g})"
        lines.append(f"| {row['threads']} | {row['engine']} | {times} | {row['min_ms'] / base['min_ms']:.1f} |")
    first = results["first_image_ms"]
    lines += [
        "",
        f"From opening the page to the first fused image, with nothing in the browser's cache: "
        f"{first['median_ms'] / 1000:.1f} s (median of 5; from a local server).",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--write", is_flag=True, help="Renew the results and the table in docs/benchmarks.md.")
def main(write: bool) -> None:
    """Time the page in a browser, and print the table."""
    try:
        results = measure()
    except EngineError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table(results))
    if write:
        path = RESULTS / f"{__version__}-web.json"
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
