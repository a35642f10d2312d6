"""What a node accepts, and what it does not."""

from __future__ import annotations

import copy
import io
import logging
import os
import re
import resource
import shutil
import socket
import sqlite3
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom
import pytest
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
)
from pynetdicom.dsutils import encode

from dmfnet_fast.errors import NodeError
from dmfnet_fast.node import receiving, service, status
from dmfnet_fast.node.database import Database
from tests.node.conftest import Archive, Box, Study, associate, send, wait

VERIFICATION = "1.2.840.10008.1.1"
Make = Callable[[int], Study]


def echo(port: int, seconds: float = 5, **options: Any) -> int | None:
    """The status of the answer; None where there is no association."""
    entity = pynetdicom.AE("SCANNER")
    entity.acse_timeout = entity.connection_timeout = entity.network_timeout = seconds
    entity.add_requested_context(VERIFICATION)
    association = entity.associate("127.0.0.1", port, ae_title="FUSE", **options)
    if not association.is_established:
        return None
    status = association.send_c_echo()
    association.release()
    return int(status.Status)


def stored(box: Box) -> list[Path]:
    return sorted((box.folder / "spool" / "studies").rglob("*.dcm"))


def test_echo(box: Box) -> None:
    box.start()
    assert echo(box.port) == 0


def test_all_storage_classes_and_transfer_syntaxes_are_accepted(box: Box) -> None:
    box.start()
    classes = [str(context.abstract_syntax) for context in pynetdicom.AllStoragePresentationContexts]
    # A retired class, and a private one.
    classes += ["1.2.840.10008.5.1.4.1.1.5", "1.3.12.2.1107.5.9.1"]
    proposed = [(kind, str(AllTransferSyntaxes[i % len(AllTransferSyntaxes)])) for i, kind in enumerate(classes)]
    proposed += [(MRImageStorage, str(syntax)) for syntax in AllTransferSyntaxes]
    for start in range(0, len(proposed), 100):
        entity = pynetdicom.AE("SCANNER")
        entity.requested_contexts = [pynetdicom.build_context(*one) for one in proposed[start : start + 100]]
        association = entity.associate("127.0.0.1", box.port, ae_title="FUSE")
        assert association.is_established
        accepted = {(str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in association.accepted_contexts}
        association.release()
        assert accepted == {(str(kind), syntax) for kind, syntax in proposed[start : start + 100]}


def test_other_services_are_not_offered(box: Box) -> None:
    box.start()
    entity = pynetdicom.AE("SCANNER")
    entity.requested_contexts = pynetdicom.QueryRetrievePresentationContexts
    association = entity.associate("127.0.0.1", box.port, ae_title="FUSE")
    assert association.accepted_contexts == []


@pytest.mark.parametrize(
    ("caller", "called", "why"),
    [("STRANGER", "FUSE", "it is not among the callers"), ("SCANNER", "OTHER", "it called 'OTHER'")],
)
def test_strangers_are_rejected(
    box: Box, make_study: Make, caplog: pytest.LogCaptureFixture, caller: str, called: str, why: str
) -> None:
    caplog.set_level(logging.WARNING)
    node = box.start()
    with pytest.raises(ConnectionError, match="rejected"):
        associate(box.port, make_study(1).mr, caller, called)
    assert stored(box) == []
    assert node.counters.of("associations_refused") == {"": 1}
    assert f"association refused: '{caller}' at 127.0.0.1: {why}" in caplog.text


def test_dcmtk(box: Box, make_study: Make, tmp_path: Path) -> None:
    if shutil.which("storescu") is None or shutil.which("echoscu") is None:
        pytest.skip("needs dcmtk's echoscu and storescu")
    box.start()
    peer = ["-aet", "SCANNER", "-aec", "FUSE", "127.0.0.1", str(box.port)]
    subprocess.run(["echoscu", *peer], check=True, timeout=20)
    folder = tmp_path / "files"
    folder.mkdir()
    images = make_study(1).mr
    for number, image in enumerate(images):
        image.save_as(folder / f"{number}.dcm")
    subprocess.run(["storescu", "--scan-directories", *peer, str(folder)], check=True, timeout=20)
    assert len(stored(box)) == len(images)


def test_images_are_kept_as_they_came(box: Box, make_study: Make) -> None:
    study = make_study(1)
    box.start()
    assert send(box.port, study.mr[:1]) == [0]
    (path,) = stored(box)
    kept = pydicom.dcmread(path)
    assert kept == study.mr[0]
    assert kept.file_meta.TransferSyntaxUID == study.mr[0].file_meta.TransferSyntaxUID
    assert path.name == f"{study.mr[0].SOPInstanceUID}.dcm"
    assert path.stat().st_mode & 0o077 == 0 or path.parents[2].stat().st_mode & 0o077 == 0


def test_other_content_under_the_same_uid_is_told(box: Box, make_study: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    image = make_study(1).mr[0]
    box.start()
    assert send(box.port, [image]) == [0]
    (path,) = stored(box)
    before = path.read_bytes()
    assert send(box.port, [image]) == [0]
    assert "other content" not in caplog.text
    image.PatientName = "Secret^Correction"
    assert send(box.port, [image]) == [0]
    told = f"image {image.SOPInstanceUID} from 'SCANNER' at 127.0.0.1 is there already with other content"
    assert told in caplog.text
    assert stored(box) == [path]
    assert path.read_bytes() == before


def test_series_behind_a_long_sequence_is_found(box: Box, make_study: Make) -> None:
    image = make_study(1).mr[0]
    item = pydicom.Dataset()
    item.add_new(0x00090010, "LO", "X")
    item.add_new(0x00091001, "OB", bytes(2**21))
    item.is_undefined_length_sequence_item = True
    image.SourceImageSequence = [item]
    image["SourceImageSequence"].is_undefined_length = True
    box.start()
    assert send(box.port, [image]) == [0]
    (path,) = stored(box)
    assert path.parent.name == image.SeriesInstanceUID


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEGLSLossless]
)
def test_headers_of_all_encodings_are_read(box: Box, make_study: Make, tmp_path: Path, syntax: UID) -> None:
    image = make_study(1).mr[0]
    if syntax.is_encapsulated:
        pytest.importorskip("jpeg_ls", reason="needs pyjpegls")
        image.compress(syntax, generate_instance_uid=False)
    else:
        del image.PixelData
        image.file_meta.TransferSyntaxUID = syntax
        file = tmp_path / "image.dcm"
        pydicom.dcmwrite(
            file, image, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, force_encoding=True
        )
        image = pydicom.dcmread(file)
    box.start()
    assert send(box.port, [image]) == [0]
    (path,) = stored(box)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    assert pydicom.dcmread(path) == image
    (series,) = box.status()["studies"][0]["series"]
    assert (series["modality"], series["description"]) == ("MR", "T2 axial")


@pytest.mark.parametrize(
    ("keyword", "value", "status"),
    [
        ("StudyInstanceUID", "", 0xC000),
        ("StudyInstanceUID", "../../../../tmp/out", 0xC000),
        ("SeriesInstanceUID", "..", 0xC000),
        ("SeriesInstanceUID", "1." * 40 + "1", 0xC000),
        ("SOPInstanceUID", "1.2.3.4", 0xA900),
        ("SOPClassUID", CTImageStorage, 0xA900),
    ],
)
def test_odd_images_are_refused(box: Box, make_study: Make, keyword: str, value: str, status: int) -> None:
    box.start()
    image = make_study(1).mr[0]
    before = copy.deepcopy(image)
    del image[keyword]
    element = pydicom.DataElement(keyword, "UI", "1.1")
    element._value = value
    image.add(element)
    assert raw(box.port, before, image) == status
    assert stored(box) == []
    assert list((box.folder / "spool" / "arriving").iterdir()) == []


def raw(port: int, named: Any, image: Any) -> int:
    """Send an image whose request names another one; the status."""
    entity = pynetdicom.AE("SCANNER")
    entity.add_requested_context(named.SOPClassUID, named.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", port, ae_title="FUSE")
    request = pynetdicom.dimse_primitives.C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = named.SOPClassUID, named.SOPInstanceUID
    request.DataSet = io.BytesIO(image if isinstance(image, bytes) else encode(image, False, True) or b"")
    association._reactor_checkpoint.clear()
    wait(lambda: association._is_paused)
    number = association.accepted_contexts[0].context_id
    assert number is not None
    association.dimse.send_msg(request, number)
    answer: Any
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return int(answer.Status)


@pytest.mark.parametrize("content", [b"\x08\x00", b"\xff" * 500, b"\x08\x00\x16\x00UI\xff\xff1.2", os.urandom(4096)])
def test_garbage_in_place_of_a_data_set_is_refused(box: Box, make_study: Make, content: bytes) -> None:
    box.start()
    assert raw(box.port, make_study(1).mr[0], content) == 0xC000
    assert stored(box) == []
    assert echo(box.port) == 0


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\xff\xff\xff\xff", os.urandom(2000), b""])
def test_garbage_on_the_port(box: Box, content: bytes) -> None:
    box.start()
    with socket.create_connection(("127.0.0.1", box.port)) as connection:
        connection.sendall(content)
        assert echo(box.port) == 0
    assert echo(box.port) == 0


def test_messages_that_do_not_end_are_cut_off(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "_SILENT_PART", 0.5)
    box.start()
    # A part of 4 GiB, and one that stops half-way.
    for content in (b"\x01\x00\xff\xff\xff\xff" + bytes(2000), b"\x01\x00\x00\x00\x01\x00" + bytes(20)):
        with socket.create_connection(("127.0.0.1", box.port), timeout=5) as connection:
            connection.sendall(content)
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""
    assert echo(box.port) == 0


def test_association_cut_half_way(box: Box, make_study: Make) -> None:
    study = make_study(1)
    node = box.start()
    entity = pynetdicom.AE("SCANNER")
    entity.add_requested_context(MRImageStorage)
    association = entity.associate("127.0.0.1", box.port, ae_title="FUSE")
    for image in study.mr[:3]:
        assert association.send_c_store(image).Status == 0
    # The head of a message that never ends.
    assert association.dul.socket is not None
    sent = association.dul.socket.socket
    assert sent is not None
    sent.sendall(b"\x04\x00\x00\x00\x40\x00\x00\x00\x00\x10\x01\x03half")
    sent.shutdown(socket.SHUT_RDWR)
    sent.close()
    assert len(stored(box)) == 3
    assert set(send(box.port, study.mr)) == {0}
    assert len(stored(box)) == len(study.mr)
    assert node.counters.of("images")["repeated"] == 3


@contextmanager
def files_of(size: int) -> Iterator[None]:
    """No file can become larger: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk(box: Box, make_study: Make) -> None:
    study = make_study(1)
    box.start()
    assert send(box.port, study.mr[:1]) == [0]
    with files_of(3000):
        assert send(box.port, study.mr[1:3]) == [0xA700, 0xA700]
    assert len(stored(box)) == 1
    assert list((box.folder / "spool" / "arriving").iterdir()) == []
    assert set(send(box.port, study.mr)) == {0}


def test_nearly_full_disk_takes_the_rest_of_studies_alone(
    box: Box, make_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, new = make_study(1), make_study(2)
    box.archive.open()
    box.write(reserve=1.0)
    node = box.start()
    free = 2**31
    monkeypatch.setattr(type(node.spool), "free", property(lambda _: free))
    assert set(send(box.port, begun.mr)) == {0}
    free = 2**30 * 3 // 4
    assert send(box.port, new.mr[:1]) == [0xA700]
    assert set(send(box.port, begun.pet[:2])) == {0}
    free = 2**28
    assert set(send(box.port, begun.pet[2:])) == {0xA700}
    # What is there needs no space.
    assert set(send(box.port, begun.mr)) == {0}
    # Known to be incomplete, it is not fused, after a restart either.
    for _ in range(2):
        box.until(begun.uid, "does not fit")
        problem = f"{len(begun.pet) - 2} of its images were refused for lack of space: send them again"
        assert box.status()["studies"][0]["problems"] == [problem]
        box.stop()
        box.start()
    free = 2**31
    assert set(send(box.port, begun.pet)) == {0}
    box.until(begun.uid, "sent")


def test_sender_may_pause(box: Box, archive: Archive, make_study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study is not complete while its association is open, unless that has been silent for long."""
    study = make_study(1)
    box.start()
    association = associate(box.port, study.images)
    for image in study.images[:-1]:
        assert association.send_c_store(image).Status == 0
    time.sleep(1.5)
    assert box.states() == {study.uid: "receiving"}
    assert association.send_c_store(study.images[-1]).Status == 0
    time.sleep(1)
    assert box.states() == {study.uid: "receiving"}
    monkeypatch.setattr(receiving, "_SILENCE", 0)
    box.until(study.uid, "sent")
    association.release()
    assert [len(images) for images in archive.series(study.uid).values()] == [len(study.mr)]


def test_disk_that_is_full_at_the_start(
    box: Box, make_study: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The node refuses images until there is room, and knows then what its studies lack."""
    partial = make_study(1)
    monkeypatch.setattr(service, "_NO_SPACE", 0.1)
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:

        def full(_: Database) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        patch.setattr(Database, "decide_again", full)
        node = box.start()
        assert echo(box.port) == 0
        assert set(send(box.port, partial.mr)) == {0xA700}
        time.sleep(0.3)
        assert caplog.text.count("the disk is full; make room: until then, all images are refused") == 1
        assert caplog.text.count("refused (0xA700): the disk is full") == 1
    wait(lambda: "there is room again" in caplog.text)
    assert set(send(box.port, partial.pet)) == {0}
    box.until(partial.uid, "does not fit")
    problem = f"{len(partial.mr)} of its images were refused for lack of space: send them again"
    assert box.status()["studies"][0]["problems"] == [problem]
    assert set(send(box.port, partial.images)) == {0}
    box.until(partial.uid, "fusing")
    assert node.counters.of("images")["refused"] == len(partial.mr)


def test_refusals_are_known_though_the_database_is_full(
    box: Box, make_study: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(1)
    node = box.start()
    assert set(send(box.port, study.mr)) == {0}
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        for name in ("add_image", "refuse_image"):
            patch.setattr(node.spool.database, name, full)
        assert set(send(box.port, study.pet[:2])) == {0xA700}
        # Said once, though it is tried again and again.
        wait(lambda: "OperationalError: database or disk is full" in caplog.text)
        time.sleep(1.5)
        assert caplog.text.count("OperationalError: database or disk is full") == 1
    assert set(send(box.port, study.pet[2:])) == {0}
    box.until(study.uid, "does not fit")
    assert "2 of its images were refused for lack of space" in box.status()["studies"][0]["problems"][0]


def test_little_space_is_in_the_status(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.write(reserve=2.0**30)
    box.start()
    assert re.fullmatch(r"\d+ MiB of the disk are free: images are refused", box.status()["problem"])
    box.stop()
    monkeypatch.setattr(status, "free_space", lambda _: 0)
    (box.folder / "spool" / "node.sqlite").write_bytes(b"")
    assert box.status()["problem"] == "the disk is full: images are refused"


def test_images_that_are_too_large(
    box: Box, make_study: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By what they claim and by what comes, of which no more is held in memory."""
    study, other = make_study(1), make_study(2)
    box.write(node="largest_image_mib = 0.25")
    node = box.start()
    claims = copy.deepcopy(study.pet[0])
    claims.Rows = claims.Columns = 60000
    assert send(box.port, [claims]) == [0xA700]
    assert "it claims 6866 MiB of pixels; more than largest_image_mib, 0.25, is not taken" in caplog.text
    claims.Rows = claims.Columns = 16
    claims.NumberOfFrames = "100000"
    assert send(box.port, [claims]) == [0xA700]
    long = copy.deepcopy(study.pet[1])
    long.PixelData = bytes(2**22)
    held: list[int] = []
    add = node.spool.add

    def measured(*arguments: Any) -> Any:
        held.append(arguments[-1].nbytes)
        return add(*arguments)

    monkeypatch.setattr(node.spool, "add", measured)
    assert send(box.port, [long]) == [0xA700]
    # What is cut off may be what tells the study.
    long.add_new(0x00091010, "OB", bytes(2**22))
    assert send(box.port, [long]) == [0xA700]
    assert held == [2**18 + 1] * 2
    assert set(send(box.port, [*study.mr, *study.pet[2:], *other.images])) == {0}
    box.until(other.uid, "fusing")
    box.until(study.uid, "does not fit")
    problem = (
        "2 of its images were refused as larger than largest_image_mib, 0.25: if that is not damage, raise it, start "
        "the node again and send them again"
    )
    (found,) = (one["problems"] for one in box.status()["studies"] if one["study"] == study.uid)
    assert found == [problem]


def test_folder_and_port_in_use(box: Box) -> None:
    box.start()
    first = box.node
    box.node = None
    with pytest.raises(NodeError, match="another dmfnet-node uses this folder"):
        box.start()
    box.settings.write_text(box.settings.read_text().replace('"spool"', '"other"'))
    with pytest.raises(NodeError, match=f"127.0.0.1:{box.port}: cannot be listened on"):
        box.start()
    box.node = first


# TLS


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and node.pem and scanner.pem signed by it, each with a .key; stranger.pem is signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, cwd=folder, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("node", "scanner"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem", "-extfile", "names")
    return folder


def tls(folder: Path, name: str | None) -> tuple[ssl.SSLContext, str]:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if name is not None:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context, "127.0.0.1"


def test_authorities_that_cannot_be_read_are_named(box: Box, certificates: Path) -> None:
    names = f'certificate = "{certificates / "node.pem"}"\nkey = "{certificates / "node.key"}"\n'
    box.write(rules=f'[tls]\n{names}authorities = "none.pem"\n{box.rules}')
    with pytest.raises(NodeError, match=r"none\.pem: cannot be used for TLS: "):
        box.start()


def test_tls(box: Box, certificates: Path, make_study: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    where = {name: certificates / name for name in ("node.pem", "node.key", "ca.pem")}
    box.write(
        rules=f'[tls]\ncertificate = "{where["node.pem"]}"\nkey = "{where["node.key"]}"\n'
        f'authorities = "{where["ca.pem"]}"\n{box.rules}',
        destination="tls = true",
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates / "scanner.pem", certificates / "scanner.key")
    server.load_verify_locations(certificates / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    box.archive.open(ssl_context=server)
    study = make_study(1)
    box.start()
    # One that says nothing keeps no other waiting.
    with socket.create_connection(("127.0.0.1", box.port)):
        assert echo(box.port, tls_args=tls(certificates, "scanner")) == 0
    assert echo(box.port, 1) is None
    assert echo(box.port, 1, tls_args=tls(certificates, None)) is None
    assert echo(box.port, 1, tls_args=tls(certificates, "stranger")) is None
    assert "connection from 127.0.0.1 ended: TLS: PEER_DID_NOT_RETURN_A_CERTIFICATE" in caplog.text
    assert set(send(box.port, study.images, tls_args=tls(certificates, "scanner"))) == {0}
    box.until(study.uid, "sent")
    assert len(box.archive.got) == len(study.mr)
