"""The process of a node that fuses: one line of JSON in for each pair, one out for its result.

A process of its own, because what damaged images do to the libraries that decode them, and what large ones do to the
memory, must not reach the process that receives. It ends when its standard input does, that is with the node, whatever
it is doing then: what it has finished of a result is not done again.

`python -m dmfnet_fast.node.worker '{"engine": ...}'`
"""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.commands.fuse_volumes import VolumeRequest, fuse_volumes
from dmfnet_fast.errors import DMFNetError, OutOfMemoryError, OutputError
from dmfnet_fast.fuser import Fuser
from dmfnet_fast.node.disk import NO_SPACE

# Failures that may pass: a full disk or memory.
_PASSING = (OutputError, OutOfMemoryError)


def request_of(job: dict[str, Any], engine: EngineOptions) -> VolumeRequest:
    """What `dmfnet-fuse` would be asked for."""
    return VolumeRequest(
        a=Path(job["mr"]),
        b=Path(job["other"]),
        output=Path(job["output"]),
        engine=engine,
        series_a=None,
        series_b=None,
        modality_b=None,
        force_patient=False,
        grid="a" if job["grid"] == "mr" else "b",
        register=job["register"],
        range_a=None if job["range_mr"] is None else tuple(job["range_mr"]),
        range_b=None if job["range_other"] is None else tuple(job["range_other"]),
        colormap=job["colormap"],
        stated_format="dicom",
        label=job["label"],
        overwrite=False,
    )


def failure(error: DMFNetError) -> dict[str, Any]:
    """An error as an answer: whether it may pass, and whether the disk was full."""
    cause = error.__cause__
    full = isinstance(cause, OSError) and cause.errno in NO_SPACE
    return {"error": str(error), "passing": isinstance(error, _PASSING), "full": full}


def answer(job: dict[str, Any], engine: EngineOptions, fuser: Fuser) -> dict[str, Any]:
    """Fuse one pair; the report, or an error and whether it may pass."""
    try:
        # Progress and warnings are for terminals; warnings are in the report, too.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            report = fuse_volumes(request_of(job, engine), fuser)
        return {"files": report["files"], "warnings": report["warnings"], "seconds": report["seconds"]}
    except DMFNetError as error:
        return failure(error)
    except Exception as error:
        # Not its words, which may quote headers.
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(at.filename).name}, line {at.lineno}"
        return {"error": where, "passing": False, "full": False}


def _jobs() -> Iterator[str]:
    """The lines of standard input, at whose end this process is ended."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        if os.getpgrp() == os.getpid():
            # With the processes that decompress for it.
            os.killpg(0, signal.SIGKILL)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, None)


def main() -> None:
    """Work until standard input ends."""
    # Nothing that a library prints may mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    engine = EngineOptions(**json.loads(sys.argv[1]))
    jobs = _jobs()

    def say(message: dict[str, Any]) -> None:
        answers.write(f"{json.dumps(message)}\n")
        answers.flush()

    try:
        fuser = engine.open()
    except DMFNetError as error:
        say(failure(error))
        return
    with fuser:
        say({"engine": fuser.info})
        for line in jobs:
            say(answer(json.loads(line), engine, fuser))


if __name__ == "__main__":
    main()
