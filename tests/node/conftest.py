"""A node, an archive that it sends to, and studies to send it."""

from __future__ import annotations

import copy
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pynetdicom = pytest.importorskip("pynetdicom", reason="needs the extra pacs")
pydicom = pytest.importorskip("pydicom", reason="needs the extra pacs")
pytest.importorskip("prometheus_client", reason="needs the extra pacs")

from dmfnet_fast.node import service
from dmfnet_fast.node.service import Node
from dmfnet_fast.node.settings import read_settings
from dmfnet_fast.node.status import status
from dmfnet_fast.volumes.phantom import draw_volume, write_series

RULES = """
[[rules]]
name = "MR with PET"
mr = { modality = "MR" }
other = { modality = "PT", description = "pet*" }
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers and nodes that look more often whether there is something to do."""
    serve = pynetdicom.transport.AssociationServer.serve_forever
    monkeypatch.setattr(
        pynetdicom.transport.AssociationServer, "serve_forever", lambda server: serve(server, poll_interval=0.1)
    )
    monkeypatch.setattr(service, "_TICK", 0.05)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def wait(condition: Callable[[], Any], seconds: float = 30, what: str = "") -> Any:
    """Until a condition holds; its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, what or "waited too long"
        time.sleep(0.05)
    return value


@dataclass
class Study:
    """Data sets of one study, by series."""

    uid: str
    mr: list[Any]
    pet: list[Any]

    @property
    def images(self) -> list[Any]:
        return [*self.mr, *self.pet]


def grid(shape: tuple[int, int, int]) -> np.ndarray:
    """Axial slices over 50 x 240 x 240 mm, in the middle of the head."""
    affine = np.eye(4)
    steps = np.array([50, 240, 240]) / shape
    affine[:3, :3] = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]) * steps
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    """An MR of 5 slices and a PET of 6, through the middle of a head; not to be changed."""
    folder = tmp_path_factory.mktemp("drawn")
    mr, pet = (
        [
            pydicom.dcmread(path)
            for path in write_series(draw_volume(modality, shape, grid(shape), 1), folder / modality)
        ]
        for modality, shape in (("MR", (5, 48, 48)), ("PT", (6, 32, 32)))
    )
    return mr, pet


@pytest.fixture(scope="session")
def make_study(drawn: tuple[list[Any], list[Any]]) -> Callable[[int], Study]:
    """The same head as many studies of as many patients."""

    def make(number: int) -> Study:
        study, space = f"1.2.3.{number}", f"1.2.3.{number}.9"
        made: list[list[Any]] = []
        for kind, images in enumerate(drawn, 1):
            made.append([])
            for place, image in enumerate(images, 1):
                one = copy.deepcopy(image)
                one.PatientName, one.PatientID = f"Secret^Name{number}", f"ID{number}"
                one.StudyInstanceUID, one.FrameOfReferenceUID = study, space
                one.SeriesInstanceUID = f"{study}.{kind}"
                one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{study}.{kind}.{place}"
                made[-1].append(one)
        return Study(study, *made)

    return make


@dataclass
class Archive:
    """What a node sends to: keeps all it gets, in order, and answers with `answers` first."""

    port: int
    got: list[Any] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    server: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, syntaxes: Sequence[str] | None = None, **options: Any) -> None:
        entity = pynetdicom.AE("ARCHIVE")
        for context in pynetdicom.AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), syntaxes and list(syntaxes))
        self.server = entity.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, self.store)], **options
        )

    def close(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server = None

    def store(self, event: Any) -> int:
        with self.lock:
            if self.answers:
                return self.answers.pop(0)
            data = event.dataset
            data.file_meta = event.file_meta
            self.got.append(data)
            return 0

    def series(self, study: str) -> dict[str, list[str]]:
        """The images that came of a study, repeated ones too, by their series."""
        found: dict[str, list[str]] = {}
        with self.lock:
            for image in self.got:
                if image.StudyInstanceUID == study:
                    found.setdefault(str(image.SeriesInstanceUID), []).append(str(image.SOPInstanceUID))
        return found


@pytest.fixture
def place() -> Iterator[Archive]:
    """An archive that is not open."""
    made = Archive(free_port())
    yield made
    made.close()


@pytest.fixture
def archive(place: Archive) -> Archive:
    place.open()
    return place


@dataclass
class Box:
    """A node's settings, and the node while it runs."""

    folder: Path
    port: int
    archive: Archive
    node: Node | None = None
    rules: str = RULES

    @property
    def settings(self) -> Path:
        return self.folder / "node.toml"

    def write(
        self,
        node: str = "",
        more: str = "",
        rules: str = RULES,
        destination: str = "",
        quiet: float = 0.5,
        callers: Sequence[str] = ("SCANNER",),
        archive: str = "ARCHIVE",
        reserve: float = 0,
    ) -> None:
        self.settings.write_text(
            f'[node]\nae_title = "FUSE"\nport = {self.port}\nfolder = "spool"\ncallers = {list(callers)}\n'
            f"quiet_seconds = {quiet}\nkeep_free_gib = {reserve}\n{node}\n"
            f'[destination]\nae_title = "{archive}"\nhost = "127.0.0.1"\nport = {self.archive.port}\n'
            f"first_delay_seconds = 0.2\nlargest_delay_seconds = 0.4\n{destination}\n"
            f'[fusing]\nprecision = "float32"\nthreads = 1\n{more}\n{rules}'
        )

    def start(self) -> Node:
        assert self.node is None
        self.node = Node(read_settings(self.settings))
        return self.node

    def stop(self) -> None:
        if self.node is not None:
            self.node.close()
            self.node = None

    def states(self) -> dict[str, str]:
        return {study["study"]: study["state"] for study in self.status()["studies"]}

    def status(self) -> dict[str, Any]:
        return status(read_settings(self.settings))

    def until(self, study: str, state: str, seconds: float = 30) -> None:
        wait(lambda: self.states().get(study) == state, seconds, f"{study} is never {state}: {self.status()}")


@pytest.fixture
def box(tmp_path: Path, place: Archive) -> Iterator[Box]:
    made = Box(tmp_path, free_port(), place)
    made.write()
    yield made
    made.stop()


def associate(port: int, images: list[Any], caller: str = "SCANNER", called: str = "FUSE", **options: Any) -> Any:
    """An association for these images. Fails where there is none."""
    entity = pynetdicom.AE(caller)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 5
    for syntax in {(image.SOPClassUID, image.file_meta.TransferSyntaxUID) for image in images}:
        entity.add_requested_context(*syntax)
    association = entity.associate("127.0.0.1", port, ae_title=called, **options)
    if not association.is_established:
        raise ConnectionError("rejected" if association.is_rejected else "aborted")
    return association


def send(port: int, images: list[Any], **options: Any) -> list[int]:
    """The statuses of the answers; -1 for none. Fails as `associate`, which takes the options."""
    association = associate(port, images, **options)
    answers = []
    for image in images:
        answer = association.send_c_store(image) if association.is_established else None
        answers.append(int(answer.Status) if answer else -1)
    if association.is_established:
        association.release()
    return answers
