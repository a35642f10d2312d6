"""The half of `dmfnet-fuse --pairs` that runs on Ray: one worker with one engine for every few cores, or every GPU."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dmfnet_fast import __version__
from dmfnet_fast.commands.fuse_worker import Pair, TableRequest, Worker
from dmfnet_fast.commands.journal import Job
from dmfnet_fast.errors import ClusterError, DMFNetError, DMFNetWarning, require, warn
from dmfnet_fast.images.formats import name_in_folder

LOCAL = "local"  # the address that stands for a cluster on this machine, which ends with the command
# Images that are handed to a worker at once, at most: for each row Ray takes about as long as an image does.
IMAGES_AT_ONCE = 32
MOST_BLOCKS = 4096
SECONDS_TO_ANSWER = 10.0


class RayWorker:
    """What Ray Data makes of `Worker`: takes and returns rows of text, and never raises, as that would end the run."""

    def __init__(self, request: TableRequest, version: str, run: str) -> None:
        self._problem = ""
        if version != __version__:
            self._problem = f"has dmfnet-fast {__version__}, and the command is {version}: install one version on all"
            return
        try:
            self._worker = Worker(request, f"{os.getpid()}-{uuid.uuid4().hex[:8]}", run)
        except DMFNetError as error:
            self._problem = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Fuse the pairs of each row.

        Args:
            batch: "pairs", lists of pairs as JSON.

        Returns:
            "done", as JSON: the outcomes, the warnings, and what keeps this worker from fusing anything, "" if nothing.
        """
        return {"done": [json.dumps(self._fuse(json.loads(text))) for text in batch["pairs"]]}

    def _fuse(self, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._problem:
            return {"problem": f"the worker on {socket.gethostname()} {self._problem}", "jobs": [], "warnings": []}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DMFNetWarning)
            jobs = [(name, asdict(job)) for name, job in self._worker.fuse([Pair(**pair) for pair in pairs])]
        told = [str(warning.message) for warning in caught if issubclass(warning.category, DMFNetWarning)]
        return {"problem": "", "jobs": jobs, "warnings": told}


def _check_answers(address: str) -> None:
    """Raise an OSError if nothing listens at an address, for which Ray itself would wait minutes."""
    host, found, port = address.removeprefix("ray://").rpartition(":")
    if found and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER):
            pass


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster, and without sending usage statistics."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == LOCAL:
        # A token for this run alone; by default Ray writes one to the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray = require("ray", extra="ray")
    require("ray.data", extra="ray")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        _check_answers(address)
        if address == LOCAL:
            ray.init(address=LOCAL, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClusterError(f"--ray {address}: no Ray cluster answers ({reason}); name its head") from error
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
    finally:
        ray.shutdown()


def _chunks(pairs: list[Pair], workers: int) -> list[list[Pair]]:
    """What to hand to a worker at once: a pair of volumes, or a few of images, so that all workers end together."""
    images = [pair for pair in pairs if name_in_folder(Path(pair.b)) is not None]
    volumes = [[pair] for pair in pairs if name_in_folder(Path(pair.b)) is None]
    size = max(1, min(IMAGES_AT_ONCE, len(images) // (4 * workers)))
    return volumes + [images[start : start + size] for start in range(0, len(images), size)]


def room_for(machines: Iterable[Mapping[str, float]], threads: int, on_gpu: bool) -> int:
    """How many workers fit, none of which can be spread over several machines.

    Args:
        machines: Ray's resources of each machine.
        threads: CPU cores of a worker.
        on_gpu: whether a worker also takes a GPU.
    """
    by_cores = ((int(machine.get("CPU", 0) // threads), int(machine.get("GPU", 0))) for machine in machines)
    return sum(min(cores, gpus) if on_gpu else cores for cores, gpus in by_cores)


def fuse_on_ray(request: TableRequest, pairs: list[Pair], address: str) -> Iterator[tuple[str, Job]]:
    """Fuse pairs on a Ray cluster, whose machines all have the files, the output folder and this package.

    A worker takes as many cores as the engine has threads, one by default, or a GPU if the engine's device is one.
    There are as many workers as the cluster has room for. One that ends is replaced, and goes on with what it had.

    Yields:
        The name of each pair, and its outcome, when it is done, in any order.

    Raises:
        ClusterError: the cluster cannot be reached, is too small, or a worker cannot open the engine.
        MissingExtraError: the extra `ray` is not installed.
    """
    device = request.engine.device or ""
    on_gpu = device.startswith("cuda")
    if device.startswith("cuda:"):
        raise ClusterError(f"--device {device}: Ray chooses the GPU of each worker; use --device cuda")
    threads = request.engine.threads or 1
    engine = replace(request.engine, threads=threads)
    request = replace(request, engine=engine, output=request.output.absolute(), pairs=request.pairs.absolute())
    # Standard output is the command's; Ray tells there of workers that end.
    with redirect_stdout(sys.stderr), _connected(address) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        workers = room_for(machines, threads, on_gpu)
        if workers < 1:
            wanted = f"{threads} cores for --threads {threads}" + (" and a GPU" if on_gpu else "")
            raise ClusterError(f"--ray {address}: no machine of the cluster has {wanted}")
        rows = [{"pairs": json.dumps([asdict(pair) for pair in chunk])} for chunk in _chunks(pairs, workers)]
        done = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map_batches(
            RayWorker,
            fn_constructor_args=(request, __version__, uuid.uuid4().hex),
            batch_size=1,
            num_cpus=threads,
            num_gpus=1 if on_gpu else None,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
        )
        try:
            for row in done.iter_rows():
                outcome = json.loads(row["done"])
                if outcome["problem"]:
                    raise ClusterError(outcome["problem"])
                for message in outcome["warnings"]:
                    warn(message)
                yield from ((name, Job(**job)) for name, job in outcome["jobs"])
        except ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ClusterError(f"--ray {address}: {reason}; what is done is kept: run the command again") from error
