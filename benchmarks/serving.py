"""Load on a real Triton Inference Server, beside the same calls of one `Fuser` in one process.

    DMFNET_TRITON=ENVIRONMENT python -m benchmarks.serving -o serving.json

As many clients as stated send pairs one after another, each a new pair when its last one has been answered. Compare
only within one run. `make servers` makes the environment.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.testing import CliRunner

from dmfnet_fast import Fuser
from dmfnet_fast.engines import shipped
from dmfnet_fast.phantom import make_phantom
from export.command import main as export
from tests.export.triton_process import running

SIZE = 256
CLIENTS = (1, 4, 16)
BATCH = 16
# Short and many, in turn, so that whatever else the machine does meets both alike.
SECONDS = 1.5  # that each measurement takes
ROUNDS = 10


def measure(make: Callable[[], Callable[[], object]], clients: int, seconds: float) -> dict[str, float]:
    """Requests a second, and percentiles of a request's time in ms, of clients that wait for each answer.

    Args:
        make: returns one client's call; it is called once for each client.
        clients: how many there are at once.
        seconds: for how long.
    """
    calls = [make() for _ in range(clients)]
    took: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    ends = time.perf_counter() + seconds

    def work(number: int) -> None:
        while (started := time.perf_counter()) < ends:
            calls[number]()
            took[number].append(time.perf_counter() - started)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - started
    all_ = np.array([one for some in took for one in some]) * 1000
    percentiles = {f"p{q}": round(float(np.percentile(all_, q)), 2) for q in (50, 95, 99)}
    return {"per_second": round(len(all_) / wall, 1), **percentiles}


def table(run: dict[str, Any]) -> str:
    """The medians as Markdown, for docs/export.md."""
    lines = [
        "| clients | | requests a second | p50, ms | p95, ms | p99, ms |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for clients in CLIENTS:
        for name in ("Fuser", "server"):
            row = run["medians"][f"{name}, {clients}"]
            cells = " | ".join(f"{row[key]:.3g}" for key in ("per_second", "p50", "p95", "p99"))
            lines.append(f"| {clients} | {'one `Fuser`' if name == 'Fuser' else 'the server'} | {cells} |")
    return "\n".join(lines)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--seconds", default=SECONDS, show_default=True)
def main(output: Path, seconds: float) -> None:
    """Measure, and write the medians of all rounds as JSON."""
    import tritonclient.grpc as client

    head = make_phantom(0, SIZE)
    pair = {"a": head.mri[None, ..., None], "b": head.pet[None]}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = str(shipped()["nano"].with_suffix(".onnx"))
        given = ["--target", "onnx", "--backend", "python", "--batch", str(BATCH), "-o", "fusion"]
        result = CliRunner().invoke(export, [weights, *given, "--triton-server", str(folder / "models")])
        assert result.exit_code == 0, result.output
        fuser = stack.enter_context(Fuser())
        server = stack.enter_context(running(folder / "models", folder / "server"))

        def local() -> Callable[[], object]:
            return lambda: fuser.fuse(head.mri, head.pet)

        def remote() -> Callable[[], object]:
            connected = stack.enter_context(client.InferenceServerClient(server.grpc))
            inputs = [client.InferInput(name, image.shape, "UINT8") for name, image in pair.items()]

            def call() -> Any:
                for made, image in zip(inputs, pair.values(), strict=True):
                    made.set_data_from_numpy(image)
                return connected.infer("fusion", inputs).as_numpy("fused")

            assert np.array_equal(call()[0], fuser.fuse(head.mri, head.pet))
            return call

        rounds: dict[str, list[dict[str, float]]] = {}
        for _ in range(ROUNDS):
            for clients in CLIENTS:
                for name, make in (("Fuser", local), ("server", remote)):
                    measured = measure(make, clients, seconds)
                    click.echo(f"{name}, {clients} clients: {measured}", err=True)
                    rounds.setdefault(f"{name}, {clients}", []).append(measured)
        info = fuser.info
    medians = {
        name: {key: float(np.median([one[key] for one in some])) for key in some[0]} for name, some in rounds.items()
    }
    about = {"size": SIZE, "cores": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()[0], **info}
    output.write_text(json.dumps({"about": about, "medians": medians, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
