"""A real Triton Inference Server on this machine: that of the package nvidia-pytriton, in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Names the folder of a virtual environment with nvidia-pytriton, numpy before 2, and dmfnet-fast[cpu].
VARIABLE = "DMFNET_TRITON"
SECONDS_TO_START = 60.0


@dataclass(frozen=True)
class Environment:
    """The parts of an installed nvidia-pytriton.

    Attributes:
        folder: the environment.
        packages: its site-packages.
        python: its version, such as "3.11".
    """

    folder: Path
    packages: Path
    python: str

    @property
    def server(self) -> Path:
        """The folder of the server."""
        return self.packages / "pytriton" / "tritonserver"


def environment() -> Environment:
    """The environment that DMFNET_TRITON names; skips the test that asks where it names none."""
    named = os.environ.get(VARIABLE)
    if not named:
        pytest.skip(f"{VARIABLE} names no environment with nvidia-pytriton; `make servers` makes one")
    found = sorted(Path(named).glob("lib/python3.*/site-packages/pytriton"))
    assert found, f"{VARIABLE}={named}: holds no nvidia-pytriton"
    packages = found[0].parent
    return Environment(Path(named).absolute(), packages, packages.parent.name.removeprefix("python"))


def _add_environment(config: Path, folder: Path) -> None:
    """Name the environment in which a model runs in its configuration, as the comment in it says."""
    with config.open("a") as file:
        file.write(f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: {json.dumps(str(folder))} }} }}\n')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    grpc: str  # host:port
    http: str
    metrics_url: str

    def metrics(self, model: str) -> dict[str, float]:
        """The server's Prometheus metrics of a model, by name."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = (line for line in lines if f'model="{model}"' in line)
        return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in found}


@contextmanager
def running(repository: Path, scratch: Path) -> Iterator[Running]:
    """Run the server on a model repository, whose Python models run in the environment, on free ports.

    Args:
        repository: the model repository.
        scratch: an empty folder for the server's backend and its log.
    """
    installed = environment()
    for config in repository.glob("*/config.pbtxt"):
        if 'backend: "python"' in config.read_text():
            _add_environment(config, installed.folder)
    backend = scratch / "backends" / "python"
    shutil.copytree(installed.server / "backends" / "python", backend)
    # The stub belongs to one version of Python, and the backend looks for it beside itself.
    shutil.copy2(installed.server / "python_backend_stubs" / installed.python / "triton_python_backend_stub", backend)
    ports = {name: _free_port() for name in ("grpc", "http", "metrics")}
    command = [
        str(installed.server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backend.parent}",
        *(f"--{name}-address=127.0.0.1" for name in ports),
        *(f"--{name}-port={port}" for name, port in ports.items()),
    ]
    libraries = f"{installed.packages / 'nvidia_pytriton.libs'}"
    log = scratch / "server.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, env={**os.environ, "LD_LIBRARY_PATH": libraries}, stdout=written, stderr=subprocess.STDOUT
        )
        try:
            http = f"127.0.0.1:{ports['http']}"
            _wait(process, f"http://{http}/v2/health/ready", log)
            yield Running(f"127.0.0.1:{ports['grpc']}", http, f"http://127.0.0.1:{ports['metrics']}/metrics")
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    assert process.returncode == 0, log.read_text(errors="replace")[-2000:]


def _wait(process: subprocess.Popen[Any], url: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"the server does not get ready: {log.read_text(errors='replace')[-2000:]}")
