"""A node that is killed at any moment loses nothing, and sends nothing twice under another name."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dmfnet_fast.node.status import is_running
from tests.node.conftest import Archive, Box, Study, send, wait

Make = Callable[[int], Study]
KILLS, STUDIES = 4, 3


@contextmanager
def running(box: Box) -> Iterator[subprocess.Popen[bytes]]:
    """A node in a process of its own, killed at the end; its log goes to the file `log`."""
    with (box.folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dmfnet_fast.commands.node", str(box.settings)], stdout=log, stderr=log
        )
    try:
        wait(lambda: is_running(box.folder / "spool") or process.poll() is not None, 60)
        assert process.poll() is None, (box.folder / "log").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def scan(box: Box, studies: list[Study], pause: float) -> None:
    """Send studies as a scanner does: what is not acknowledged is sent again."""
    for study in studies:
        waiting = study.images
        while waiting:
            try:
                answers = send(box.port, waiting)
            except ConnectionError:
                time.sleep(0.1)
                continue
            assert set(answers) <= {0, -1}
            waiting = waiting[answers.index(-1) :] if -1 in answers else []
        time.sleep(pause)


def survive(box: Box, studies: list[Study], kills: int, seed: int) -> None:
    """Kill a node again and again while studies come in, are fused and are sent on."""
    choose = random.Random(seed)
    scanner = threading.Thread(target=scan, args=(box, studies, 1.5 * kills / len(studies)))
    scanner.start()
    for _ in range(kills):
        with running(box):
            time.sleep(choose.uniform(0, 2))
    with running(box):
        scanner.join()
        for study in studies:
            box.until(study.uid, "sent", 120)


def check(archive: Archive, studies: list[Study]) -> None:
    """Each study has one fused series, whole; an image may have come more than once, under one UID."""
    for study in studies:
        ((_, images),) = archive.series(study.uid).items()
        assert len(set(images)) == len(study.mr)


@pytest.fixture
def slow(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that takes a while for each image, so that kills find some on their way."""
    store = archive.store

    def slowly(event: object) -> int:
        time.sleep(0.03)
        return store(event)

    archive.close()
    monkeypatch.setattr(archive, "store", slowly)
    archive.open()


@pytest.mark.usefixtures("slow")
def test_killed_at_random(box: Box, archive: Archive, make_study: Make) -> None:
    studies = [make_study(number) for number in range(STUDIES)]
    box.write(quiet=1.5)
    survive(box, studies, KILLS, seed=5)
    check(archive, studies)
