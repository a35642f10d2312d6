"""The folder in which a node keeps all it has: images as they came, what is fused of them, and the database.

    lock, node.sqlite      the running node's, and what it knows
    arriving/              images that are being written; emptied at the start
    studies/STUDY/SERIES/IMAGE.dcm
    results/ID/            links to the images of both series while they are fused, then the result
    deleted/               what is being deleted; emptied at the start

Names are UIDs and hashes, never a patient's.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import sqlite3
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

from dmfnet_fast.errors import NodeBusyError, NodeError, require
from dmfnet_fast.node.database import Database, naming
from dmfnet_fast.node.disk import LEAST, NoSpaceError, free_space, lacks_space
from dmfnet_fast.node.rules import Series

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID, _LONGEST_TEXT = 64, 64
_KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription",
)  # fmt: skip
# Bytes in which these nearly always are, and to which a deflated header is inflated at most; the tag of pixels.
_HEADER, _PIXELS = 2**20, 0x7FE00000
# Numbers that say how large an image is once it is decompressed.
_LONGEST_NUMBER = 12
_SIZES = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")
LOCK = "lock"


class Refusal(Enum):
    """Why an image is not accepted, as DICOM says it (PS3.4, B.2.3)."""

    OUT_OF_RESOURCES = 0xA700
    MISMATCH = 0xA900
    NOT_UNDERSTOOD = 0xC000


class RefusedError(Exception):
    """An image that is not accepted.

    Attributes:
        refusal: what the sender is told.
        lacking: why its study lacks it now, and what to do; "" where it is of no study.
    """

    def __init__(self, refusal: Refusal, reason: str, lacking: str = "") -> None:
        super().__init__(reason)
        self.refusal, self.lacking = refusal, lacking


@dataclass(frozen=True)
class Stored:
    """Where an image belongs, whether it is new, and if not, whether the one that is there has other content."""

    study: str
    series: str
    new: bool
    differs: bool = False


@dataclass(frozen=True)
class _Header:
    """Where an image belongs, and how many bytes its pixels claim to be."""

    study: str
    series: Series
    image: str
    sop_class: str
    size: int


def _sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> IO[bytes] | None:
    """Lock a file as long as the returned one, or a process that inherits it, lives; None where another one has it."""
    # Windows has none; `dmfnet-node` says so.
    import fcntl

    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _patiently(path: Path) -> IO[bytes] | None:
    """`take_lock`, tried again for a moment: `--status` holds the lock while it looks whether anybody does."""
    for _ in range(20):
        lock = take_lock(path)
        if lock is not None:
            return lock
        time.sleep(0.05)
    return None


_NO_SPACE = "for lack of space: send them again"


class Spool:
    """A node's folder: nothing is accepted until it was prepared.

    Args:
        folder: is made if need be.
        reserve: bytes that must be free for a new study; for the rest of a study half of them.
        largest: bytes that an image may have, as it comes and uncompressed.

    Attributes:
        accepting: whether images are accepted.
    """

    def __init__(self, folder: Path, reserve: int, largest: int) -> None:
        self.folder = folder
        self._reserve, self._largest = reserve, largest
        self._adding = threading.Lock()
        self._arriving, self._studies = folder / "arriving", folder / "studies"
        self._results, self._deleted = folder / "results", folder / "deleted"
        self._lock: IO[bytes] | None = None
        self._database: Database | None = None
        self.accepting = False
        # Refused images that the database does not know of yet: study, image and reason.
        self._unrecorded: dict[tuple[str, str], str] = {}
        self._recording = threading.Lock()

    @property
    def database(self) -> Database:
        """What is known of the folder, once it was prepared."""
        assert self._database is not None, "`prepare` opens it"
        return self._database

    def prepare(self) -> None:
        """Take the folder and see what is in it. Where the disk was too full for that, this may be called again.

        Raises:
            NoSpaceError: the disk is full.
            NodeBusyError: another node uses the folder.
            NodeError: the folder cannot be used.
        """
        with self._naming("name another folder"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in (self._arriving, self._studies, self._results, self._deleted):
                part.mkdir(mode=0o700, exist_ok=True)
            self._lock = self._lock or _patiently(self.folder / LOCK)
        if self._lock is None:
            raise NodeBusyError(f"{self.folder}: another dmfnet-node uses this folder; stop it, or name another folder")
        if self._database is None:
            self._database = Database(self.folder)
        with self._naming("make it writable"), naming(self.folder):
            self._clear()

    @contextmanager
    def _naming(self, advice: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if lacks_space(error, self.folder):
                raise NoSpaceError(f"{self.folder}: the disk is full; make room") from error
            raise NodeError(f"{self.folder}: cannot be used: {error.strerror or error}; {advice}") from error

    def close(self) -> None:
        """Let another node use the folder."""
        if self._database is not None:
            self._database.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def free(self) -> int:
        """Bytes of the disk that are free."""
        return free_space(self.folder)

    @property
    def full(self) -> bool:
        """Whether the disk is full, so that what is done now could not be noted."""
        return self.free < LEAST

    def _clear(self) -> None:
        """Delete what was begun and is not in the database, and forget what is in the database and gone."""
        for folder in (self._arriving, self._deleted):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        known = self.database.all_images()
        there = set()
        for path in self._studies.glob("*/*/*.dcm"):
            image = path.parts[-3], path.parts[-2], path.stem
            there.add(image)
            if image not in known:
                path.unlink()
        gone = sorted(known - there)
        if gone:
            self.database.forget_images(gone)
        for path in self._results.iterdir():
            if not self.database.result_exists(path.name):
                shutil.rmtree(path)

    # Images

    def _path(self, study: str, series: str, image: str) -> Path:
        return self._studies / study / series / f"{image}.dcm"

    def add(self, sop_class: str, image: str, syntax: str, meta: bytes, dataset: memoryview) -> Stored:
        """Keep an image; it is on the disk when this returns. One that is there already is left as it is.

        Args:
            sop_class, image: its SOP Class and Instance UID, as the sender names them.
            syntax: the transfer syntax of the data set.
            meta: preamble and file meta information.
            dataset: all else, as it came.

        Raises:
            RefusedError: it cannot be kept; nothing of it is left, but for the knowledge that its study lacks it.
        """
        try:
            header = _read_header(dataset, syntax)
        except RefusedError:
            # Where it was cut off, its header may be incomplete.
            self._check_size(dataset.nbytes)
            raise
        if (header.sop_class, header.image) != (sop_class, image):
            raise RefusedError(Refusal.MISMATCH, "its SOP Class or Instance UID differs from that of the request")
        try:
            self._check_size(dataset.nbytes, header.size)
            return self._write(header, meta, dataset)
        except RefusedError as error:
            self._record(header.study, image, error.lacking)
            raise

    def _check_size(self, held: int, claimed: int = 0) -> None:
        """Raise a RefusedError for an image that is too large, as it came or uncompressed."""
        if max(held, claimed) > self._largest:
            limit = f"largest_image_mib, {self._largest / 2**20:g}"
            known = f"claims {claimed / 2**20:.0f} MiB of pixels" if claimed > self._largest else "is too large"
            raise RefusedError(
                Refusal.OUT_OF_RESOURCES,
                f"it {known}; more than {limit}, is not taken",
                f"as larger than {limit}: if that is not damage, raise it, start the node again and send them again",
            )

    def _record(self, study: str, image: str, reason: str) -> None:
        """Note that a study lacks an image; where the database cannot, it will be told later."""
        with self._recording:
            self._unrecorded[study, image] = reason
        with suppress(sqlite3.Error):
            self._tell_database()

    def _tell_database(self) -> None:
        if self._database is None:
            return
        with self._recording:
            for (study, image), reason in list(self._unrecorded.items()):
                self._database.refuse_image(study, image, reason)
                del self._unrecorded[study, image]

    def lacking(self, study: str) -> dict[str, int]:
        """How many images of a study were refused and have not come again, by the reason.

        Raises:
            sqlite3.Error: the database cannot be told of all of them, such as on a full disk.
        """
        self._tell_database()
        return self.database.refused_images(study)

    def _write(self, header: _Header, meta: bytes, dataset: memoryview) -> Stored:
        if not self.accepting:
            raise RefusedError(Refusal.OUT_OF_RESOURCES, "the disk is full", _NO_SPACE)
        arriving = self._arriving / uuid.uuid4().hex
        place = header.study, header.series.uid, header.image
        try:
            if self.free < self._reserve / 2 and self.database.image_hash(*place) is None:
                reason = f"{self.free / 2**20:.0f} MiB of the disk are free"
                raise RefusedError(Refusal.OUT_OF_RESOURCES, reason, _NO_SPACE)
            with arriving.open("xb") as file:
                file.write(meta)
                file.write(dataset)
                file.flush()
                os.fsync(file.fileno())
            return self._put(arriving, header, hashlib.sha256(dataset).hexdigest())
        except (OSError, sqlite3.Error) as error:
            full = lacks_space(error, self.folder)
            reason = "the disk is full" if full else f"cannot be written: {type(error).__name__}: {error}"
            raise RefusedError(Refusal.OUT_OF_RESOURCES, reason, _NO_SPACE) from error
        finally:
            with suppress(OSError):
                arriving.unlink(missing_ok=True)

    def _put(self, arriving: Path, header: _Header, digest: str) -> Stored:
        """Move an image to its place, unless one is there."""
        study, series, image = header.study, header.series.uid, header.image
        with self._adding:
            there = self.database.image_hash(study, series, image)
            if there is not None:
                return Stored(study, series, new=False, differs=there != digest)
            if not self.database.has_study(study) and self.free < self._reserve:
                reason = f"no new study: {self.free / 2**20:.0f} MiB are free"
                raise RefusedError(Refusal.OUT_OF_RESOURCES, reason, _NO_SPACE)
            path = self._path(study, series, image)
            changed = [path.parent]
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700, parents=True)
                changed += [path.parent.parent, self._studies]
            arriving.rename(path)
            try:
                for folder in changed:
                    _sync(folder)
                self.database.add_image(study, header.series, image, digest)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            with self._recording:
                self._unrecorded.pop((study, image), None)
            return Stored(study, series, new=True)

    # Results

    def result_folder(self, result: str) -> Path:
        """Where a result lies."""
        return self._results / result

    def sources(self, result: str) -> tuple[Path, Path]:
        """The folders with the images of the MR and the other series."""
        return self._results / result / "mr", self._results / result / "other"

    def link_sources(
        self, result: str, study: str, mr: dict[str, str], other: dict[str, str], series: tuple[str, str]
    ) -> None:
        """Fix which images a result is made of, whatever else comes."""
        self.release_sources(result)
        for target, uid, images in zip(self.sources(result), series, (mr, other), strict=True):
            target.mkdir(mode=0o700, parents=True)
            for image in images:
                os.link(self._path(study, uid, image), target / f"{image}.dcm")

    def release_sources(self, result: str) -> None:
        """Remove the links of a result that is fused."""
        for folder in self.sources(result):
            shutil.rmtree(folder, ignore_errors=True)

    def sync_result(self, files: list[Path]) -> None:
        """Bring a result's files to the disk."""
        # The series' folder, the one that holds it, and the result's.
        folders = {folder for file in files for folder in file.parents[:3]}
        for path in [*files, *folders, self._results]:
            _sync(path)

    # Cleaning

    def remove_expired(self, before: float) -> list[str]:
        """Delete the studies in which nothing has happened since, their results and all that is known of them."""
        # No image may come for a study between the look at it and its end.
        with self._adding:
            studies = self.database.expired(before)
            self.database.forget_refused(before)
            results = [result for study in studies for result in self.database.remove_study(study)]
            gone = [self._discard(self._results / result) for result in results]
            gone += [self._discard(self._studies / study) for study in studies]
            # Results that new rules have no use for.
            for path in list(self._results.iterdir()):
                if not self.database.result_exists(path.name) and path.stat().st_mtime < before:
                    gone.append(self._discard(path))
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)
        return studies

    def _discard(self, path: Path) -> Path:
        target = self._deleted / uuid.uuid4().hex
        if path.exists():
            path.rename(target)
        return target


def _text(value: object) -> str:
    """A header's text, short and on one line."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value or ""))[:_LONGEST_TEXT].strip()


def _read_header(dataset: memoryview, syntax: str) -> _Header:
    """Where an image belongs.

    Raises:
        RefusedError: it does not say.
    """
    found: dict[str, str] = {}
    # An element that goes on beyond may look damaged.
    with suppress(RefusedError):
        found = _parsed(dataset[:_HEADER], syntax)
    if not found.get("SeriesInstanceUID"):
        found = _parsed(dataset, syntax)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not _UID.fullmatch(found[keyword]) or len(found[keyword]) > _LONGEST_UID:
            raise RefusedError(Refusal.NOT_UNDERSTOOD, f"it has no valid {keyword}")
    series = Series(found["SeriesInstanceUID"], _text(found["Modality"]), _text(found["SeriesDescription"]))
    return _Header(found["StudyInstanceUID"], series, found["SOPInstanceUID"], found["SOPClassUID"], _size(found))


def _size(found: Mapping[str, str]) -> int:
    """The bytes that an image's pixels take uncompressed, as far as its header says."""
    rows, columns, frames, samples, bits = (
        int(found[keyword]) if found[keyword].isdecimal() and len(found[keyword]) <= _LONGEST_NUMBER else default
        for keyword, default in zip(_SIZES, (0, 0, 1, 1, 16), strict=True)
    )
    return rows * columns * frames * samples * bits // 8


def _parsed(dataset: memoryview, syntax: str) -> dict[str, str]:
    """The elements that tell where an image belongs, as far as they are in the data."""
    pydicom = require("pydicom", "dicom")
    uid = pydicom.uid.UID(syntax)
    known = uid.is_transfer_syntax and not uid.is_private
    tags = [pydicom.tag.Tag(keyword) for keyword in (*_KEYWORDS, *_SIZES, "SpecificCharacterSet")]
    try:
        data: bytes | memoryview = dataset
        if known and uid.is_deflated:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(dataset, _HEADER)
        header = pydicom.filereader.read_dataset(
            io.BytesIO(data), known and uid.is_implicit_VR, not known or uid.is_little_endian,
            stop_when=lambda tag, *_: tag >= _PIXELS, specific_tags=tags,
        )  # fmt: skip
        found = {keyword: str(header.get(keyword) or "") for keyword in _KEYWORDS}
    except Exception as error:
        # Whatever a damaged data set makes pydicom raise.
        raise RefusedError(Refusal.NOT_UNDERSTOOD, f"its data set is damaged ({type(error).__name__})") from error
    for keyword in _SIZES:
        found[keyword] = ""
        # Whether its pixels can be read is asked when they are fused.
        with suppress(Exception):
            found[keyword] = str(header.get(keyword) or "")
    return found
