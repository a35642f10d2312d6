"""What a node does, for people (`dmfnet-node --status`) and for Prometheus."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dmfnet_fast.errors import NodeError, require
from dmfnet_fast.node.counters import Counters
from dmfnet_fast.node.database import NAME, OPEN, Database, NoTablesError, Result, Study
from dmfnet_fast.node.disk import LEAST, NoSpaceError, free_space
from dmfnet_fast.node.receiving import cannot_listen
from dmfnet_fast.node.settings import Settings
from dmfnet_fast.node.spool import LOCK, Spool, take_lock

_STATES = ("receiving", "does not fit", "fusing", "sending", "sent", "failed", "unsent")
_PREFIX = "dmfnet_node"
_FULL = "the disk is full: images are refused"


def state_of(study: Study, results: Iterable[Result]) -> str:
    """The state of a study in one word or three: what it waits for, else what went wrong, else "sent"."""
    states = {result.state for result in results} - {"replaced"}
    if study.images > study.decided:
        return "receiving"
    return next(
        (state for state in ("fusing", "sending", "failed", "unsent", "sent") if state in states), "does not fit"
    )


def is_running(folder: Path) -> bool:
    """Whether a node uses this folder."""
    if not (folder / LOCK).exists():
        return False
    lock = take_lock(folder / LOCK)
    if lock is not None:
        lock.close()
    return lock is None


def status(settings: Settings) -> dict[str, Any]:
    """What is in a node's folder, as JSON holds it; descriptions of series are as their scanners wrote them.

    Raises:
        NodeError: the folder cannot be read.
    """
    folder = settings.folder
    found: dict[str, Any] = {"folder": str(folder), "problem": "", "studies": []}
    try:
        found["running"] = is_running(folder)
        found["problem"] = _space(free_space(folder), settings.reserve)
        if not (folder / NAME).exists():
            return found
        database = Database(folder, read_only=True)
    except NoTablesError:
        return found
    except NoSpaceError:
        return {**found, "problem": f"{_FULL}, and the studies cannot be read"}
    except OSError as error:
        raise NodeError(f"{folder}: cannot be read: {error.strerror or error}; run this as the node's user") from error
    try:
        found["studies"] = [_describe(database, study) for study in database.studies()]
    except sqlite3.Error as error:
        raise NodeError(f"{folder / NAME}: cannot be read: {error}") from error
    finally:
        database.close()
    return found


def _space(free: int, reserve: int) -> str:
    """What is refused for lack of space."""
    if free < LEAST:
        return _FULL
    if free >= reserve:
        return ""
    return (
        f"{free / 2**20:.0f} MiB of the disk are free: {'images' if free < reserve / 2 else 'new studies'} are refused"
    )


def _describe(database: Database, study: Study) -> dict[str, Any]:
    results = database.results(study.uid)
    return {
        "study": study.uid,
        "state": state_of(study, results),
        "received": _moment(study.received),
        "last_image": _moment(study.changed),
        "series": [
            {
                "uid": series.uid,
                "modality": series.modality,
                "description": series.description,
                "images": len(database.images_of(study.uid, series.uid)),
            }
            for series in database.series_of(study.uid)
        ],
        "problems": json.loads(study.note or "[]"),
        "results": [
            {
                "id": result.id,
                "rule": result.rule,
                "state": result.state,
                "series": result.series,
                "attempts": result.attempts,
                "next_attempt": _moment(result.due) if result.state in OPEN and result.due else None,
                "problem": result.reason,
            }
            for result in results
        ],
    }


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A status as text."""
    yield f"{'running' if found['running'] else 'not running'}, {found['folder']}"
    if found["problem"]:
        yield found["problem"]
    counts = Counter(study["state"] for study in found["studies"])
    yield ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state]) or "no studies"
    for study in found["studies"]:
        yield ""
        yield f"study {study['study']}: {study['state']}, last image {study['last_image']}"
        for series in study["series"]:
            described = f"{series['modality'] or '?'} {series['description'] or 'without description'}"
            yield f"  series {series['uid']}: {described}, {series['images']} images"
        for problem in study["problems"]:
            yield f"  {problem}"
        for result in study["results"]:
            later = (
                f", tried {result['attempts']} times, again at {result['next_attempt']}"
                if result["next_attempt"]
                else ""
            )
            yield f"  {result['rule']}: {result['state']}{later}"
            for line in result["problem"].splitlines():
                yield f"    {line}"


class Metrics:
    """A page for Prometheus at http://127.0.0.1:PORT/metrics, until closed."""

    def __init__(self, settings: Settings, spool: Spool, counters: Counters) -> None:
        client = require("prometheus_client", "pacs")
        self._spool, self._counters = spool, counters
        registry = client.CollectorRegistry()
        registry.register(self)
        try:
            self._server, _ = client.start_http_server(settings.metrics_port, "127.0.0.1", registry)
        except OSError as error:
            raise cannot_listen(error, f"127.0.0.1:{settings.metrics_port}", "metrics_port") from error

    def close(self) -> None:
        """Take the page away."""
        self._server.shutdown()
        self._server.server_close()

    def collect(self) -> Iterator[Any]:
        """All metrics, as `prometheus_client` wants them."""
        core = require("prometheus_client.core", "pacs")
        images = core.CounterMetricFamily(f"{_PREFIX}_images", "Images that came", labels=["outcome"])
        for outcome in ("new", "repeated", "refused"):
            images.add_metric([outcome], self._counters.of("images").get(outcome, 0))
        yield images
        for name, text in (
            ("bytes", "Bytes of images that came"),
            ("echoes", "Verification requests"),
            ("associations_refused", "Associations that were refused, such as of unknown callers"),
            ("associations_aborted", "Associations that were cut off"),
            ("fused", "Series fused"),
            ("fusing_seconds", "Seconds spent on fusing them"),
            ("fusing_failed", "Attempts to fuse that failed"),
            ("images_sent", "Fused images delivered"),
            ("sending_failed", "Attempts to send that failed"),
        ):
            yield core.CounterMetricFamily(f"{_PREFIX}_{name}", text, value=self._counters.of(name).get("", 0))
        yield core.GaugeMetricFamily(f"{_PREFIX}_free_bytes", "Free bytes of the disk", value=self._spool.free)
        if not self._spool.accepting:
            return
        studies = self._spool.database.studies()
        results = self._spool.database.results()
        by_study: dict[str, list[Result]] = {study.uid: [] for study in studies}
        for result in results:
            by_study.setdefault(result.study, []).append(result)
        states = Counter(state_of(study, by_study[study.uid]) for study in studies)
        gauge = core.GaugeMetricFamily(f"{_PREFIX}_studies", "Studies that are kept", labels=["state"])
        for state in _STATES:
            gauge.add_metric([state], states[state])
        yield gauge
        waiting = [time.time() - result.created for result in results if result.state in OPEN]
        yield core.GaugeMetricFamily(
            f"{_PREFIX}_oldest_waiting_seconds",
            "Age of the oldest result that is not delivered",
            value=max(waiting, default=0),
        )
