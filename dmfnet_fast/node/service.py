"""The running node: receives, decides, fuses, sends and cleans up, each in a thread of its own."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dmfnet_fast.errors import DMFNetError, require
from dmfnet_fast.node.counters import Counters
from dmfnet_fast.node.database import Database, Result, naming
from dmfnet_fast.node.disk import NoSpaceError, lacks_space
from dmfnet_fast.node.fusing import FusingError, Worker
from dmfnet_fast.node.receiving import Receiver
from dmfnet_fast.node.rules import Pair, Rule, decide
from dmfnet_fast.node.sending import Sender, SendingError
from dmfnet_fast.node.settings import Settings
from dmfnet_fast.node.spool import Spool, Stored

log = logging.getLogger(__name__)
# Seconds between two looks for something to do, where nothing wakes a thread before.
_TICK, _CLEANING = 0.25, 600.0
# Seconds between two attempts to begin on a disk that was full.
_NO_SPACE = 5.0
# A fusion that fails in a way that may pass is tried so often, after delays that double from the first.
_FUSING_ATTEMPTS, _FUSING_DELAY = 6, 10.0


class Node:
    """A node, from its start to `close`.

    On a full disk it starts, too, and refuses all images until there is room.

    Raises:
        NodeError: it cannot start: its folder or port cannot be used.
        MissingExtraError: the extra `pacs` is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.counters = Counters()
        self._stop, self._begun = threading.Event(), threading.Event()
        self._last: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self.spool = Spool(settings.folder, settings.reserve, settings.largest_image)
        try:
            self._worker = Worker(settings.folder, settings.fusing, self._stop.is_set)
            self._sender = Sender(settings)
            try:
                self._begin()
            except NoSpaceError as error:
                log.error("%s: until then, all images are refused", error)
            self._receiver = Receiver(settings, self.spool, self.counters, self._arrived)
        except BaseException:
            self.spool.close()
            raise
        loops = ((self._decide, _TICK), (self._fuse, _TICK), (self._send, _TICK), (self._clean, _CLEANING))
        self._threads = [
            threading.Thread(target=self._loop, args=loop, name=loop[0].__name__, daemon=True) for loop in loops
        ]
        if not self._begun.is_set():
            self._threads.append(threading.Thread(target=self._wait_for_room, daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def _database(self) -> Database:
        return self.spool.database

    def _begin(self) -> None:
        """Go on with what is in the folder.

        Raises:
            NoSpaceError: the disk is full.
            NodeError: the folder cannot be used.
        """
        self.spool.prepare()
        with naming(self.settings.folder):
            # What was coming in when the node ended may go on now; the other studies are known to be complete.
            self._last = dict.fromkeys((study.uid for study in self._database.studies()), -math.inf)
            self._last.update(dict.fromkeys(self._database.undecided(), time.monotonic()))
            self._database.decide_again()
        self.spool.accepting = True
        self._begun.set()

    def _wait_for_room(self) -> None:
        while not self._stop.wait(_NO_SPACE):
            try:
                self._begin()
            except NoSpaceError:
                continue
            except (DMFNetError, OSError, sqlite3.Error) as error:
                self._say_once("begin", f"{type(error).__name__}: {error}")
                continue
            log.info("%s: there is room again, and images are accepted", self.settings.folder)
            return

    def close(self) -> None:
        """Stop; what was not finished goes on with the next start."""
        self._stop.set()
        self._receiver.close()
        self._worker.close()
        self._sender.close()
        for thread in self._threads:
            thread.join()
        self.spool.close()

    def _loop(self, work: Callable[[], bool], pause: float) -> None:
        """Do work as long as there is some, then look again after a while."""
        while not self._begun.wait(_TICK):
            if self._stop.is_set():
                return
        name = work.__name__
        while not self._stop.is_set():
            problem = ""
            try:
                busy = work()
            except (DMFNetError, OSError, sqlite3.Error) as error:
                problem = f"{type(error).__name__}: {error}"
            except Exception as error:
                # Its words may quote headers; nothing may end a thread.
                problem = f"unexpected {type(error).__name__} in {name}"
            self._say_once(name, problem)
            if problem:
                self._stop.wait(1)
            elif not busy:
                self._stop.wait(pause)

    def _say_once(self, name: str, problem: str) -> None:
        """Log a problem with some work, unless it is the one that was logged last; "" for none any more."""
        if problem and problem != self._problems.get(name):
            log.error("%s", problem)
        self._problems[name] = problem

    def _arrived(self, stored: Stored) -> None:
        if stored.new:
            if stored.study not in self._last:
                log.info("study %s: receiving", stored.study)
            self._last[stored.study] = time.monotonic()

    # Deciding

    def _decide(self) -> bool:
        now, receiving = time.monotonic(), self._receiver.receiving()
        for study, images in self._database.undecided().items():
            if now - self._last.setdefault(study, now) < self.settings.quiet or study in receiving:
                continue
            self._apply_rules(study, images)
        return False

    def _apply_rules(self, study: str, images: int) -> None:
        pairs, reasons = decide(self.settings.rules, self._database.series_of(study))
        lacking = self.spool.lacking(study)
        if lacking:
            pairs.clear()
            reasons = [f"{count} of its images were refused {reason}" for reason, count in lacking.items()]
        new = sum([self._prepare(study, pair) for pair in pairs])
        note = json.dumps(reasons)
        if new or note != self._database.note(study):
            log.info("study %s: %d images, %d to fuse", study, images, new)
            for reason in reasons:
                log.warning("study %s: %s", study, reason)
        self._database.decided(study, images, note)
        self._last.pop(study, None)

    def _prepare(self, study: str, pair: Pair) -> bool:
        """Put a pair in line; False where the same images of it were before."""
        mr, other = (self._database.images_of(study, series) for series in (pair.mr, pair.other))
        identity = json.dumps([study, pair.mr, mr, pair.other, other], sort_keys=True)
        result = hashlib.sha256(identity.encode()).hexdigest()[:32]
        if self._database.result_exists(result):
            return False
        self.spool.link_sources(result, study, mr, other, (pair.mr, pair.other))
        now = time.time()
        self._database.add_result(
            Result(result, study, pair.rule.name, pair.mr, pair.other, "", "fusing", 0, 0.0, "", now, now)
        )
        return True

    # Fusing

    def _fuse(self) -> bool:
        result = None if self.spool.full else self._database.next_due("fusing")
        if result is None:
            return False
        (rule,) = (rule for rule in self.settings.rules if rule.name == result.rule)
        try:
            self._fuse_one(result, rule)
        except FusingError as error:
            self._fusing_failed(result, error)
        except OSError as error:
            full = lacks_space(error, self.settings.folder)
            self._fusing_failed(result, FusingError(f"{type(error).__name__}: {error}", passing=True, full=full))
        return True

    def _fuse_one(self, result: Result, rule: Rule) -> None:
        mr, other = self.spool.sources(result.id)
        output = self.spool.result_folder(result.id) / "out"
        resumed = output.exists()
        try:
            fused = self._worker.fuse(rule, mr, other, output)
        except FusingError as error:
            if not resumed or error.ended or error.full:
                raise
            # It may be about what an interrupt left behind. Nothing of that was sent, so it is no loss.
            shutil.rmtree(output, ignore_errors=True)
            raise FusingError(str(error), passing=True) from error
        self.spool.sync_result(fused.files)
        self.counters.add("fused")
        self.counters.add("fusing_seconds", amount=fused.seconds)
        if self._database.fused(result.id, _series_uid(fused.files[0]), [file.name for file in fused.files]):
            log.info("study %s: fused by rule %r in %.1f s", result.study, result.rule, fused.seconds)
            for warning in fused.warnings:
                log.warning("study %s: %s", result.study, warning)
        else:
            log.info("study %s: more images came while it was fused", result.study)
        self.spool.release_sources(result.id)

    def _fusing_failed(self, result: Result, error: FusingError) -> None:
        if self._stop.is_set():
            return
        # A full disk is nothing that the study could be given up for.
        if error.full or (error.passing and result.attempts + 1 < _FUSING_ATTEMPTS):
            delay = _FUSING_DELAY * 2 ** min(result.attempts, _FUSING_ATTEMPTS)
            self._database.postpone(result.id, delay, str(error))
        else:
            self._database.close_result(result.id, "failed", str(error))
        self.counters.add("fusing_failed")
        log.error("study %s: not fused: %s", result.study, str(error).splitlines()[0])

    # Sending

    def _send(self) -> bool:
        result = None if self.spool.full else self._database.next_due("sending")
        if result is None:
            return False
        folder = self.spool.result_folder(result.id) / "out" / "fused"
        names = self._database.unsent(result.id)

        def delivered(file: Path) -> None:
            self._database.sent(result.id, file.name)
            self.counters.add("images_sent")

        try:
            if names:
                self._sender.send([folder / name for name in names], delivered)
        except (SendingError, OSError) as error:
            self._sending_failed(result, str(error))
            return True
        self._database.close_result(result.id, "sent")
        log.info("study %s: sent", result.study)
        return True

    def _sending_failed(self, result: Result, reason: str) -> None:
        if self._stop.is_set():
            return
        to = self.settings.destination
        self.counters.add("sending_failed")
        if time.time() - result.changed > to.give_up:
            self._database.close_result(result.id, "unsent", reason)
            log.error("study %s: given up: %s", result.study, reason)
            return
        delay = min(to.first_delay * 2 ** min(result.attempts, 30), to.largest_delay)
        self._database.postpone(result.id, delay, reason)
        log.warning("study %s: not sent, again in %.0f s: %s", result.study, delay, reason)

    # Cleaning

    def _clean(self) -> bool:
        for study in self.spool.remove_expired(time.time() - self.settings.keep):
            log.info("study %s: deleted", study)
        return False


def _series_uid(file: Path) -> str:
    pydicom = require("pydicom", "dicom")
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
    return str(header.SeriesInstanceUID)
