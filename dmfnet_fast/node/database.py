"""What a node knows, in one SQLite file: which images it has, what is to be fused of them, and what was sent.

Every change is on the disk when its transaction ends, so a node that is killed goes on from there.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dmfnet_fast.errors import NodeError
from dmfnet_fast.node.disk import NoSpaceError, lacks_space
from dmfnet_fast.node.rules import Series

NAME = "node.sqlite"
_VERSION = 2
# `images` counts the images that a study ever got; `decided` is that count when its rules were last applied.
_SCHEMA = f"""
CREATE TABLE studies(
    uid TEXT PRIMARY KEY, received REAL NOT NULL, changed REAL NOT NULL,
    images INTEGER NOT NULL, decided INTEGER NOT NULL, note TEXT NOT NULL);
CREATE TABLE series(
    study TEXT NOT NULL REFERENCES studies ON DELETE CASCADE, uid TEXT NOT NULL,
    modality TEXT NOT NULL, description TEXT NOT NULL, PRIMARY KEY(study, uid));
CREATE TABLE images(
    study TEXT NOT NULL REFERENCES studies ON DELETE CASCADE, series TEXT NOT NULL, uid TEXT NOT NULL,
    sha256 TEXT NOT NULL, PRIMARY KEY(study, series, uid));
CREATE TABLE refused(
    study TEXT NOT NULL, image TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY(study, image));
CREATE TABLE results(
    id TEXT PRIMARY KEY, study TEXT NOT NULL REFERENCES studies ON DELETE CASCADE,
    rule TEXT NOT NULL, mr TEXT NOT NULL, other TEXT NOT NULL, series TEXT NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL, due REAL NOT NULL, reason TEXT NOT NULL,
    created REAL NOT NULL, changed REAL NOT NULL);
CREATE TABLE files(
    result TEXT NOT NULL REFERENCES results ON DELETE CASCADE, name TEXT NOT NULL, sent INTEGER NOT NULL,
    PRIMARY KEY(result, name));
CREATE INDEX results_by_study ON results(study);
CREATE INDEX results_by_state ON results(state, created);
PRAGMA user_version = {_VERSION};
"""
State = Literal["fusing", "sending", "sent", "failed", "unsent", "replaced"]
# In these, a result still waits for something.
OPEN: tuple[State, ...] = ("fusing", "sending")


@dataclass(frozen=True)
class Study:
    """A study; times are seconds since 1970, `note` says why rules do not fit."""

    uid: str
    received: float
    changed: float
    images: int
    decided: int
    note: str


@dataclass(frozen=True)
class Result:
    """The fusion of two series of a study.

    Attributes:
        id: a hash of the images that are fused, so that no two results are of the same ones.
        rule: the name of the rule.
        mr, other: the UIDs of both series.
        series: the UID of the fused series; "" until there is one.
        state: "fusing" and "sending" until these are done; "failed": cannot be fused; "unsent": was given up;
            "replaced": more images of its series came before it was fused.
        attempts: how often the present step has failed.
        due: when it is tried again.
        reason: of the last failure.
    """

    id: str
    study: str
    rule: str
    mr: str
    other: str
    series: str
    state: State
    attempts: int
    due: float
    reason: str
    created: float
    changed: float


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Turn what SQLite raises into a NodeError that names the database of a node's folder.

    Raises:
        NoSpaceError: the disk is full.
        NodeError: something else is wrong.
    """
    try:
        yield
    except sqlite3.Error as error:
        if lacks_space(error, folder):
            raise NoSpaceError(f"{folder}: the disk is full; make room") from error
        raise NodeError(
            f"{folder / NAME}: cannot be used: {error}; if the file is damaged, move the folder away and start with an "
            "empty one"
        ) from error


class NoTablesError(NodeError):
    """A database that a node has begun, but whose tables it has not made, such as for a full disk."""


class Database:
    """One connection, used by all threads in turn."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open the database of a node's folder; unless `read_only`, make it where it is missing.

        Raises:
            NoSpaceError: the disk is full.
            NoTablesError: it is to be read, and its tables are not made yet.
            NodeError: it cannot be opened, is damaged, or of another version.
        """
        path = folder / NAME
        self._lock = threading.RLock()
        with naming(folder):
            source = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._connection = sqlite3.connect(source, uri=True, isolation_level=None, check_same_thread=False)
            try:
                version = self._set_up(read_only)
            except BaseException:
                self._connection.close()
                raise
        if version != _VERSION:
            self._connection.close()
            if version == 0:
                raise NoTablesError(f"{path}: holds no tables; start the node, which makes them")
            raise NodeError(
                f"{path}: is of another version of dmfnet-fast; go on with that version, or move the folder away and "
                "start with an empty one"
            )

    def _set_up(self, read_only: bool) -> object:
        """Set the connection's options, and make the tables where there are none; the version of the tables."""
        if not read_only:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        version = self._one("PRAGMA user_version")
        if version == 0 and not read_only:
            self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            version = _VERSION
        return version

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def change(self) -> Iterator[None]:
        """A transaction: all that is changed within is on the disk afterwards, or nothing.

        Raises:
            sqlite3.Error: it cannot be written, such as on a full disk.
        """
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _run(self, statement: str, *values: object) -> int:
        """Change something; returns how many rows."""
        with self._lock:
            return self._connection.execute(statement, values).rowcount

    def _all(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _one(self, statement: str, *values: object) -> object:
        rows = self._all(statement, *values)
        return rows[0][0] if rows else None

    # Images

    def has_study(self, study: str) -> bool:
        """Whether a study is there."""
        return self._one("SELECT 1 FROM studies WHERE uid = ?", study) is not None

    def image_hash(self, study: str, series: str, image: str) -> str | None:
        """The SHA-256 of an image, or None where it is not there."""
        found = self._one("SELECT sha256 FROM images WHERE study = ? AND series = ? AND uid = ?", study, series, image)
        return None if found is None else str(found)

    def add_image(self, study: str, series: Series, image: str, sha256: str) -> None:
        """Add an image that is not there yet."""
        now = time.time()
        with self.change():
            self._run("INSERT OR IGNORE INTO studies VALUES (?, ?, ?, 0, 0, '')", study, now, now)
            self._run("UPDATE studies SET changed = ?, images = images + 1 WHERE uid = ?", now, study)
            self._run(
                "INSERT OR IGNORE INTO series VALUES (?, ?, ?, ?)",
                study, series.uid, series.modality, series.description,
            )  # fmt: skip
            self._run("INSERT INTO images VALUES (?, ?, ?, ?)", study, series.uid, image, sha256)
            self._run("DELETE FROM refused WHERE study = ? AND image = ?", study, image)

    def refuse_image(self, study: str, image: str, reason: str) -> None:
        """Record that an image came which could not be kept, so that its study is known to be incomplete.

        Not one that is there: no image that comes later would tell that the study is complete.
        """
        self._run(
            "INSERT OR REPLACE INTO refused SELECT ?1, ?2, ?3, ?4 "
            "WHERE NOT EXISTS (SELECT 1 FROM images WHERE study = ?1 AND uid = ?2)",
            study, image, reason, time.time(),
        )  # fmt: skip

    def refused_images(self, study: str) -> dict[str, int]:
        """How many images of a study were refused and have not come again, by the reason."""
        rows = self._all("SELECT reason, COUNT(*) FROM refused WHERE study = ? GROUP BY reason ORDER BY reason", study)
        return {str(reason): int(str(count)) for reason, count in rows}

    def forget_refused(self, before: float) -> None:
        """Forget the images that were refused before."""
        self._run("DELETE FROM refused WHERE at < ?", before)

    def all_images(self) -> set[tuple[str, str, str]]:
        """Study, series and UID of every image."""
        return {(str(a), str(b), str(c)) for a, b, c in self._all("SELECT study, series, uid FROM images")}

    def forget_images(self, images: Sequence[tuple[str, str, str]]) -> None:
        """Remove images whose files are gone; their studies are decided again."""
        with self.change():
            for study, series, image in images:
                self._run("DELETE FROM images WHERE study = ? AND series = ? AND uid = ?", study, series, image)
                self._run("UPDATE studies SET decided = 0 WHERE uid = ?", study)

    def images_of(self, study: str, series: str) -> dict[str, str]:
        """The hashes of a series' images by their UIDs, in their order."""
        rows = self._all("SELECT uid, sha256 FROM images WHERE study = ? AND series = ? ORDER BY uid", study, series)
        return {str(uid): str(sha256) for uid, sha256 in rows}

    # Studies

    def studies(self) -> list[Study]:
        """All studies, the oldest first."""
        rows = self._all("SELECT uid, received, changed, images, decided, note FROM studies ORDER BY received, uid")
        return [Study(*row) for row in rows]  # type: ignore[arg-type]

    def undecided(self) -> dict[str, int]:
        """The studies with images that came after their rules were last applied, and how many images these have."""
        return {str(uid): int(str(n)) for uid, n in self._all("SELECT uid, images FROM studies WHERE images > decided")}

    def series_of(self, study: str) -> list[Series]:
        """A study's series that came from elsewhere; those of this node's results are left out."""
        rows = self._all(
            "SELECT uid, modality, description FROM series WHERE study = ? AND uid NOT IN (SELECT series FROM results) "
            "ORDER BY uid",
            study,
        )
        return [Series(*map(str, row)) for row in rows]

    def decided(self, study: str, images: int, note: str) -> None:
        """Record that rules were applied to a study of that many images, and why they do not fit."""
        self._run("UPDATE studies SET decided = ?, note = ? WHERE uid = ?", images, note, study)

    def note(self, study: str) -> str:
        """Why rules did not fit a study."""
        return str(self._one("SELECT note FROM studies WHERE uid = ?", study) or "")

    def decide_again(self) -> None:
        """Begin as if no rules had been applied: what was not fused is forgotten, and what was not sent is due.

        What was given up is tried again, too.
        """
        with self.change():
            self._run("UPDATE studies SET decided = 0")
            self._run("DELETE FROM results WHERE state IN ('fusing', 'failed', 'replaced')")
            self._run("UPDATE results SET attempts = 0, due = 0 WHERE state = 'sending'")
            self._run(
                "UPDATE results SET state = 'sending', attempts = 0, changed = ? WHERE state = 'unsent'", time.time()
            )

    def expired(self, before: float) -> list[str]:
        """Studies in which nothing has happened since and which wait for nothing."""
        rows = self._all(
            "SELECT uid FROM studies WHERE changed < ?1 AND images = decided AND NOT EXISTS ("
            "SELECT 1 FROM results WHERE study = studies.uid AND (state IN ('fusing', 'sending') OR changed >= ?1))",
            before,
        )
        return [str(uid) for (uid,) in rows]

    def remove_study(self, study: str) -> list[str]:
        """Remove a study; returns the ids of its results."""
        results = [result.id for result in self.results(study)]
        self._run("DELETE FROM studies WHERE uid = ?", study)
        return results

    # Results

    def results(self, study: str | None = None) -> list[Result]:
        """All results, or those of a study, the oldest first."""
        where, values = ("", ()) if study is None else ("WHERE study = ?", (study,))
        rows = self._all(f"SELECT * FROM results {where} ORDER BY created, id", *values)
        return [Result(*row) for row in rows]  # type: ignore[arg-type]

    def result_exists(self, result: str) -> bool:
        """Whether there is such a result, in whichever state."""
        return self._one("SELECT 1 FROM results WHERE id = ?", result) is not None

    def add_result(self, result: Result) -> None:
        """Add a result that is to be fused, in place of those of the same series that have not been."""
        with self.change():
            self._run(
                "UPDATE results SET state = 'replaced', changed = ? "
                "WHERE study = ? AND mr = ? AND other = ? AND state IN ('fusing', 'failed')",
                result.created, result.study, result.mr, result.other,
            )  # fmt: skip
            self._run(
                "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                result.id, result.study, result.rule, result.mr, result.other, result.series, result.state,
                result.attempts, result.due, result.reason, result.created, result.changed,
            )  # fmt: skip

    def next_due(self, state: State) -> Result | None:
        """The result in a state that has been due for the longest time, if one is."""
        rows = self._all(
            "SELECT * FROM results WHERE state = ? AND due <= ? ORDER BY due, created, id LIMIT 1", state, time.time()
        )
        return Result(*rows[0]) if rows else None  # type: ignore[arg-type]

    def fused(self, result: str, series: str, names: Sequence[str]) -> bool:
        """Record a result's files, which are to be sent; False where the result has been replaced."""
        with self.change():
            changed = self._run(
                "UPDATE results SET state = 'sending', series = ?, attempts = 0, due = 0, reason = '', changed = ? "
                "WHERE id = ? AND state = 'fusing'",
                series, time.time(), result,
            )  # fmt: skip
            if changed:
                for name in names:
                    self._run("INSERT INTO files VALUES (?, ?, 0)", result, name)
        return bool(changed)

    def unsent(self, result: str) -> list[str]:
        """The names of a result's files that were not delivered, in their order."""
        return [
            str(n) for (n,) in self._all("SELECT name FROM files WHERE result = ? AND sent = 0 ORDER BY name", result)
        ]

    def sent(self, result: str, name: str) -> None:
        """Record that a file was delivered."""
        self._run("UPDATE files SET sent = 1 WHERE result = ? AND name = ?", result, name)

    def close_result(self, result: str, state: State, reason: str = "") -> None:
        """Record how a result ended."""
        self._run(
            "UPDATE results SET state = ?, reason = ?, due = 0, changed = ? "
            "WHERE id = ? AND state IN ('fusing', 'sending')",
            state, reason, time.time(), result,
        )  # fmt: skip

    def postpone(self, result: str, seconds: float, reason: str) -> None:
        """Record a failure that may pass."""
        self._run(
            "UPDATE results SET attempts = attempts + 1, due = ?, reason = ? WHERE id = ?",
            time.time() + seconds, reason, result,
        )  # fmt: skip
