"""`dmfnet-node`: the command, what it says of itself, and the process that fuses for it."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.commands.node import main
from dmfnet_fast.errors import OutOfMemoryError, OutputError, VolumeError
from dmfnet_fast.node import worker as worker_module
from dmfnet_fast.node.fusing import Fused, FusingError, Worker
from dmfnet_fast.node.rules import Match, Rule
from dmfnet_fast.node.settings import Fusing
from tests.node.conftest import Box, Study, free_port, send, wait
from tests.node.test_kills import running

Make = Callable[[int], Study]
FUSING = Fusing("nano", None, "float32", 1, 0, 0.75, False, timeout=60, start_timeout=60)
RULE = Rule("PET", Match(("MR",)), Match(("PT",)))


def invoke(*arguments: Any) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.usefixtures("archive")
def test_whole_run(box: Box, make_study: Make) -> None:
    """One process, from its start to SIGTERM: status, metrics and log."""
    study, alone = make_study(1), make_study(2)
    metrics = free_port()
    box.write(node=f"metrics_port = {metrics}")
    result = invoke(box.settings, "--status")
    assert (result.exit_code, result.stdout) == (1, f"not running, {box.folder / 'spool'}\nno studies\n")
    with running(box) as process:
        wait(lambda: "listens on" in (box.folder / "log").read_text())
        for one in (study.images, study.mr[:1], alone.mr):
            assert set(send(box.port, one)) == {0}
        box.until(study.uid, "sent")
        box.until(alone.uid, "does not fit")
        result = invoke(box.settings, "--status")
        assert result.exit_code == 0
        first, counts, *lines = result.stdout.splitlines()
        assert first == f"running, {box.folder / 'spool'}"
        assert counts == "1 does not fit, 1 sent"
        assert f"  series {study.uid}.1: MR T2 axial, {len(study.mr)} images" in lines
        assert f"  series {study.uid}.2: PT PET FDG brain, {len(study.pet)} images" in lines
        assert "  MR with PET: sent" in lines
        assert "  rule 'MR with PET': no series fits other" in lines
        assert json.loads(invoke(box.settings, "--status", "--json").stdout) == box.status()
        check_metrics(metrics, study, alone)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    log = (box.folder / "log").read_text()
    assert f"study {study.uid}: sent" in log
    assert log.splitlines()[-1].endswith("INFO stopping")
    for word in ("Secret", "ID1", "Traceback", "WARNING The value"):
        assert word not in log


def check_metrics(port: int, study: Study, alone: Study) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    values = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    assert values["dmfnet_node_images_total", "new"] == len(study.images) + len(alone.mr)
    assert values["dmfnet_node_images_total", "repeated"] == 1
    assert values["dmfnet_node_images_total", "refused"] == 0
    assert values["dmfnet_node_images_sent_total",] == len(study.mr)
    assert values["dmfnet_node_fused_total",] == 1
    assert values["dmfnet_node_fusing_seconds_total",] > 0
    assert values["dmfnet_node_studies", "sent"] == 1
    assert values["dmfnet_node_studies", "does not fit"] == 1
    assert values["dmfnet_node_studies", "failed"] == 0
    assert values["dmfnet_node_oldest_waiting_seconds",] == 0
    assert values["dmfnet_node_free_bytes",] > 0


def test_mistakes_end_with_one_line(box: Box, tmp_path: Path) -> None:
    result = invoke(tmp_path / "none.toml")
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path / 'none.toml'}: cannot be read: No such file or directory\n"
    box.write(node="colour = 1")
    result = invoke(box.settings)
    assert result.exit_code == 2
    assert "colour is not known" in result.stderr
    assert not (box.folder / "spool").exists()


def test_port_and_folder_in_use_are_worth_another_start(box: Box) -> None:
    with socket.create_server(("127.0.0.1", box.port)):
        result = invoke(box.settings)
    assert result.exit_code == 75
    assert "cannot be listened on: Address already in use" in result.stderr
    box.start()
    result = invoke(box.settings)
    assert result.exit_code == 75
    assert result.stderr.endswith("another dmfnet-node uses this folder; stop it, or name another folder\n")


def test_windows_gets_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['fcntl'] = None; from dmfnet_fast.commands.node import main; main()"
    result = subprocess.run([sys.executable, "-c", code, tmp_path / "x.toml"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: dmfnet-node: runs on Linux and macOS only")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("begun", ["", "PRAGMA journal_mode = WAL"])
def test_status_of_a_database_without_tables(begun: str, box: Box) -> None:
    """A node that was killed, or whose disk was full, as it first started leaves one."""
    folder = box.folder / "spool"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "node.sqlite")) as connection:
        connection.execute(begun)
    assert bool((folder / "node.sqlite").stat().st_size) == bool(begun)
    result = invoke(box.settings, "--status")
    assert result.exit_code == 1
    assert result.stdout == f"not running, {folder}\nno studies\n"


def test_database_of_another_version(box: Box) -> None:
    (box.folder / "spool").mkdir()
    with closing(sqlite3.connect(box.folder / "spool" / "node.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 1")
    for arguments in ((), ("--status",)):
        result = invoke(box.settings, *arguments)
        assert result.exit_code == 2
        assert "node.sqlite: is of another version of dmfnet-fast; go on with that version, or move" in result.stderr


def test_damaged_database(box: Box) -> None:
    (box.folder / "spool").mkdir()
    (box.folder / "spool" / "node.sqlite").write_bytes(b"nothing" * 1000)
    for arguments in ((), ("--status",)):
        result = invoke(box.settings, *arguments)
        assert result.exit_code == 2
        assert "node.sqlite: cannot be used: file is not a database" in result.stderr


# The process that fuses


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    made = Worker(tmp_path, FUSING, lambda: False)
    yield made
    made.close()


@pytest.fixture
def folders(make_study: Make, tmp_path: Path) -> tuple[Path, Path]:
    study = make_study(1)
    for name, images in (("mr", study.mr), ("other", study.pet)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            image.save_as(tmp_path / name / f"{number}.dcm")
    return tmp_path / "mr", tmp_path / "other"


def test_killed_worker_is_started_again(worker: Worker, folders: tuple[Path, Path], tmp_path: Path) -> None:
    first = worker.fuse(RULE, *folders, tmp_path / "out")
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGKILL)
    worker._process.wait()
    second = worker.fuse(RULE, *folders, tmp_path / "out")
    assert second.files == first.files
    os.kill(worker._process.pid, signal.SIGSTOP)
    stopped = worker._process
    worker._settings = replace(FUSING, timeout=0.6)
    with pytest.raises(FusingError, match=r"the process that fuses took more than 0\.01 minutes$") as error:
        worker.fuse(RULE, *folders, tmp_path / "out")
    assert error.value.passing
    assert error.value.ended
    assert stopped.returncode == -signal.SIGKILL


def test_worker_that_does_not_start(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It and what it has started are ended; the next attempt starts another one."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nsleep 600 &\necho $! >{tmp_path / 'child'}.part\n"
                      f"mv {tmp_path / 'child'}.part {tmp_path / 'child'}\nwait\n")  # fmt: skip
    python.chmod(0o700)
    worker._settings = replace(FUSING, start_timeout=1.2)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        with pytest.raises(FusingError, match=r"took more than 0\.02 minutes as it started$") as error:
            worker.fuse(RULE, tmp_path, tmp_path, tmp_path / "out")
        assert error.value.passing
        assert error.value.ended
    wait(lambda: gone(int((tmp_path / "child").read_text())))
    worker._settings = FUSING
    caplog.set_level(logging.INFO)
    with pytest.raises(FusingError, match="none: no such file or folder"):
        worker.fuse(RULE, tmp_path / "none", tmp_path / "none", tmp_path / "out")
    assert "engine: " in caplog.text


def gone(process: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_worker_ends_with_its_node(worker: Worker, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """At once, whatever it is doing."""
    worker.fuse(RULE, *folders, tmp_path / "out")
    process = worker._process
    assert process is not None
    assert process.stdin is not None
    options = {"grid": "mr", "register": False, "range_mr": None, "range_other": None, "colormap": None, "label": None}
    job = {"mr": str(folders[0]), "other": str(folders[1]), "output": str(tmp_path / "other"), **options}
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.close()
    assert process.wait(20) == -signal.SIGKILL
    assert not (tmp_path / "other" / "report.json").exists()


def test_worker_that_outlives_its_node_is_waited_for(
    worker: Worker, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    worker.fuse(RULE, *folders, tmp_path / "out")
    assert worker._lock is not None
    # As when the node is killed: its own descriptor is gone, the process has another one.
    worker._lock.close()
    second = Worker(tmp_path, worker._settings, lambda: False)
    results: list[Fused] = []
    thread = threading.Thread(target=lambda: results.append(second.fuse(RULE, *folders, tmp_path / "out")))
    thread.start()
    thread.join(1)
    assert results == []
    worker.close()
    thread.join(30)
    assert len(results[0].files) == 5
    second.close()


def test_engine_that_cannot_be_opened(tmp_path: Path) -> None:
    worker = Worker(tmp_path, replace(FUSING, engine=str(tmp_path / "no.onnx")), lambda: False)
    with pytest.raises(FusingError, match=r"no\.onnx") as error:
        worker.fuse(RULE, tmp_path, tmp_path, tmp_path / "out")
    assert not error.value.passing


def full_disk() -> OutputError:
    error = OutputError("no space left")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "said", "passing"),
    [
        (VolumeError("slices are missing"), "slices are missing", False),
        (OutputError("no space"), "no space", True),
        (OutOfMemoryError("out of memory"), "out of memory", True),
        (full_disk(), "no space left", True),
        # Whatever it says, it may quote a header.
        (ValueError("Secret^Name"), r"ValueError in test_command\.py, line \d+", False),
    ],
)
def test_what_a_worker_says_of_errors(
    monkeypatch: pytest.MonkeyPatch, error: Exception, said: str, passing: bool
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(worker_module, "fuse_volumes", fail)
    job = {"mr": "a", "other": "b", "output": "c", "grid": "other", "register": False, "colormap": None, "label": None}
    job |= {"range_mr": [0, 1], "range_other": None}
    options = EngineOptions("nano", None, "auto", 1, 0, 0.75, False)
    answer = worker_module.answer(job, options, None)  # type: ignore[arg-type]
    assert re.fullmatch(said, answer["error"])
    assert answer["passing"] is passing
    assert answer["full"] is ("no space left" in said)
