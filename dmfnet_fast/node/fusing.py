"""The side of a node that fuses, in a process of its own (`worker`)."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from dmfnet_fast.errors import DMFNetError
from dmfnet_fast.node.rules import Rule
from dmfnet_fast.node.settings import Fusing
from dmfnet_fast.node.spool import take_lock

log = logging.getLogger(__name__)
LOCK = "fusing.lock"
# Seconds for a process to end that has closed its output.
_ENDING = 10.0
# Settings that are the node's, not the process's.
_TIMES = ("timeout", "start_timeout")


class FusingError(DMFNetError):
    """Two series that could not be fused.

    Attributes:
        passing: another attempt may help.
        ended: the process that fuses ended or was ended, so that nothing is known of the series themselves.
        full: the disk was full.
    """

    def __init__(self, message: str, *, passing: bool, ended: bool = False, full: bool = False) -> None:
        super().__init__(message)
        self.passing, self.ended, self.full = passing, ended, full


@dataclass(frozen=True)
class Fused:
    """The files of a fused series, what was warned of, and how many seconds it took."""

    files: list[Path]
    warnings: list[str]
    seconds: float


class Worker:
    """The process that fuses, started when it is first needed and again after it has ended.

    It leads a group of processes, with those that decompress for it, and is ended with all of them.

    Args:
        folder: holds a lock that the process inherits: one that outlives a killed node is waited for, so that no two
            write the same result.
        stopped: whether the node stops, so that nothing may be started any more.
    """

    def __init__(self, folder: Path, settings: Fusing, stopped: Callable[[], bool]) -> None:
        self._lock_path = folder / LOCK
        self._settings, self._stopped = settings, stopped
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._guard = threading.Lock()

    def fuse(self, rule: Rule, mr: Path, other: Path, output: Path) -> Fused:
        """Fuse two series into the folder `output`; goes on where an earlier call was interrupted.

        Raises:
            FusingError: it failed. If it took too long, the process has been ended.
        """
        started = time.monotonic()
        job = {"mr": str(mr), "other": str(other), "output": str(output)}
        options = {name: value for name, value in asdict(rule).items() if name not in ("name", "mr", "other")}
        answer = self._ask(json.dumps({**job, **options}))
        return Fused([Path(file) for file in answer["files"]], answer["warnings"], time.monotonic() - started)

    def close(self) -> None:
        """End the process, whatever it is doing; it is gone when this returns."""
        with self._guard:
            if self._process is not None:
                # If it has ended, that was found a moment ago at most: its number cannot be another group's yet.
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                self._process = None
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def _ask(self, line: str) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        # Where it has ended, no answer comes.
        with suppress(OSError):
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        return self._answer(process, self._settings.timeout, "")

    def _answer(self, process: subprocess.Popen[str], seconds: float, when: str) -> dict[str, Any]:
        """The next line of the process, which is ended where none comes in time.

        Args:
            when: ends the messages.
        """
        try:
            text = self._lines.get(timeout=min(seconds, threading.TIMEOUT_MAX))
            how = "" if text else self._death(process)
        except queue.Empty:
            text, how = "", f"took more than {seconds / 60:g} minutes"
        if not text:
            self.close()
            raise FusingError(f"the process that fuses {how}{when}", passing=True, ended=True)
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise FusingError(answer["error"], passing=answer["passing"], full=answer["full"])
        return answer

    @staticmethod
    def _death(process: subprocess.Popen[str]) -> str:
        """How a process ended that closed its output."""
        try:
            code = process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        if code >= 0:
            return f"ended with exit code {code}"
        why = ", perhaps for lack of memory" if code == -signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{why}"

    def _started(self) -> subprocess.Popen[str]:
        with self._guard:
            process = self._process
        if process is not None and process.poll() is None:
            return process
        # What it has started may have outlived it.
        self.close()
        self._wait_for_lock()
        settings = {name: value for name, value in asdict(self._settings).items() if name not in _TIMES}
        with self._guard:
            if self._stopped():
                raise FusingError("the node is stopping", passing=True, ended=True)
            assert self._lock is not None
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "dmfnet_fast.node.worker", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                pass_fds=[self._lock.fileno()],
                start_new_session=True,
            )
            self._lines = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process.stdout, self._lines), daemon=True).start()
        try:
            engine = self._answer(process, self._settings.start_timeout, " as it started")["engine"]
        except FusingError:
            self.close()
            raise
        log.info("engine: %s on %s, %s", engine.get("file"), engine.get("device"), engine.get("precision"))
        return process

    def _wait_for_lock(self) -> None:
        """Take the lock, which a process of a killed node holds for a moment: it ends when the node has."""
        end, said = time.monotonic() + self._settings.start_timeout, False
        while self._lock is None:
            if self._stopped():
                raise FusingError("the node is stopping", passing=True, ended=True)
            self._lock = take_lock(self._lock_path)
            if self._lock is None:
                if not said:
                    log.info("waiting for a process that still fuses for an earlier run")
                    said = True
                if time.monotonic() > end:
                    raise FusingError(
                        f"{self._lock_path}: is held by a process of an earlier run that does not end; end it",
                        passing=True, ended=True,
                    )  # fmt: skip
                time.sleep(0.1)


def _read(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Hand on each line of a process, and "" at its end, with which a line may have been cut off."""
    with stream:
        for line in stream:
            if line.endswith("\n"):
                lines.put(line)
    lines.put("")
