"""The side of a node that fuses, in a process of its own (`worker`)."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from dmfnet_fast.errors import DMFNetError
from dmfnet_fast.node.rules import Rule
from dmfnet_fast.node.settings import Fusing
from dmfnet_fast.node.spool import take_lock

log = logging.getLogger(__name__)
LOCK = "fusing.lock"


class FusingError(DMFNetError):
    """Two series that could not be fused; `passing` where another attempt may help."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Fused:
    """The files of a fused series, what was warned of, and how many seconds it took."""

    files: list[Path]
    warnings: list[str]
    seconds: float


class Worker:
    """The process that fuses, started when it is first needed and again after it has died.

    Args:
        folder: holds a lock that the process inherits: one that outlives a killed node is waited for, so that no two
            write the same result.
    """

    def __init__(self, folder: Path, settings: Fusing, stopped: Callable[[], bool]) -> None:
        self._lock_path = folder / LOCK
        self._settings, self._stopped = settings, stopped
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._guard = threading.Lock()

    def fuse(self, rule: Rule, mr: Path, other: Path, output: Path) -> Fused:
        """Fuse two series into the folder `output`; goes on where an earlier call was interrupted.

        Raises:
            FusingError: it failed.
        """
        started = time.monotonic()
        job = {"mr": str(mr), "other": str(other), "output": str(output)}
        options = {name: value for name, value in asdict(rule).items() if name not in ("name", "mr", "other")}
        answer = self._ask(json.dumps({**job, **options}))
        return Fused([Path(file) for file in answer["files"]], answer["warnings"], time.monotonic() - started)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        with self._guard:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _ask(self, line: str) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        overdue = threading.Timer(self._settings.timeout, process.kill)
        overdue.start()
        try:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            text = process.stdout.readline()
        except OSError:
            text = ""
        finally:
            late = not overdue.is_alive()
            overdue.cancel()
        if not text:
            how = f"took more than {self._settings.timeout / 60:g} minutes" if late else self._death(process)
            self.close()
            raise FusingError(f"the process that fuses {how}", passing=True)
        return self._checked(text)

    def _checked(self, text: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise FusingError(answer["error"], passing=answer["passing"])
        return answer

    @staticmethod
    def _death(process: subprocess.Popen[str]) -> str:
        code = process.wait()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._wait_for_lock()
        assert self._lock is not None
        settings = {name: value for name, value in asdict(self._settings).items() if name != "timeout"}
        with self._guard:
            if self._stopped():
                raise FusingError("the node is stopping", passing=True)
            process = subprocess.Popen(
                [sys.executable, "-m", "dmfnet_fast.node.worker", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                pass_fds=[self._lock.fileno()],
            )
            self._process = process
        assert process.stdout is not None
        hello = process.stdout.readline()
        if not hello:
            how = self._death(process)
            self.close()
            raise FusingError(f"the process that fuses {how} as it started", passing=True)
        try:
            engine = self._checked(hello)["engine"]
        except FusingError:
            self.close()
            raise
        log.info("engine: %s on %s, %s", engine.get("file"), engine.get("device"), engine.get("precision"))
        return process

    def _wait_for_lock(self) -> None:
        said = False
        while self._lock is None:
            if self._stopped():
                raise FusingError("the node is stopping", passing=True)
            self._lock = take_lock(self._lock_path)
            if self._lock is None:
                if not said:
                    log.info("waiting for a process that still fuses for an earlier run")
                    said = True
                time.sleep(0.1)
