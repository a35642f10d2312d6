"""From images that come in to results that go out."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from dmfnet_fast.node import service
from dmfnet_fast.node.fusing import Fused, FusingError, Worker
from dmfnet_fast.node.settings import Fusing
from tests.node.conftest import RULES, Archive, Box, Study, send, wait

Make = Callable[[int], Study]


class Shared(Worker):
    """A worker that nodes leave open, so that not every test starts one."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Shared(
        tmp_path_factory.mktemp("worker"), Fusing("nano", None, "float32", 1, 0, 0.75, False, 600, 600), lambda: False
    )
    yield worker
    Worker.close(worker)


@pytest.fixture(autouse=True)
def fast(shared: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "Worker", lambda *_: shared)


def whole(archive: Archive, study: Study) -> list[str]:
    """The series that came back of a study, each of which must be whole and have come once."""
    found = archive.series(study.uid)
    for images in found.values():
        assert len(images) == len(set(images)) == len(study.mr)
    return list(found)


def pixels(archive: Archive, study: Study) -> np.ndarray:
    images = [image for image in archive.got if image.StudyInstanceUID == study.uid]
    return np.stack([image.pixel_array for image in sorted(images, key=lambda image: int(image.InstanceNumber))])


def test_study_comes_back_fused(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    box.start()
    assert set(send(box.port, study.images)) == {0}
    box.until(study.uid, "sent")
    (series,) = whole(archive, study)
    assert series not in (study.mr[0].SeriesInstanceUID, study.pet[0].SeriesInstanceUID)
    for image in archive.got:
        mr = study.mr[image.InstanceNumber - 1]
        assert image.PatientID == mr.PatientID
        assert np.allclose(image.ImagePositionPatient, mr.ImagePositionPatient, atol=1e-3)
    assert pixels(archive, study).max() > 100


def test_compressed_images_give_the_same_result(box: Box, archive: Archive, make_study: Make) -> None:
    pytest.importorskip("jpeg_ls", reason="needs pyjpegls")
    plain, compressed = make_study(1), make_study(2)
    for image in compressed.mr:
        image.compress(RLELossless, generate_instance_uid=False)
    for image in compressed.pet:
        image.compress(JPEGLSLossless, generate_instance_uid=False)
    box.start()
    for study in (plain, compressed):
        assert set(send(box.port, study.images)) == {0}
    for study in (plain, compressed):
        box.until(study.uid, "sent")
        whole(archive, study)
    assert np.array_equal(pixels(archive, plain), pixels(archive, compressed))


def test_two_at_once(box: Box, archive: Archive, make_study: Make) -> None:
    studies = [make_study(number) for number in (1, 2)]
    box.start()
    senders = [threading.Thread(target=send, args=(box.port, study.images)) for study in studies]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    for study in studies:
        box.until(study.uid, "sent")
        whole(archive, study)
    assert np.array_equal(pixels(archive, studies[0]), pixels(archive, studies[1]))


def test_many_in_a_row(box: Box, archive: Archive, make_study: Make) -> None:
    studies = [make_study(number) for number in range(4)]
    box.start()
    for study in studies:
        assert set(send(box.port, study.images)) == {0}
    for study in studies:
        box.until(study.uid, "sent", 60)
        assert len(whole(archive, study)) == 1


def test_repeated_deliveries_change_nothing(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    node = box.start()
    for _ in range(2):
        assert set(send(box.port, study.images)) == {0}
    box.until(study.uid, "sent")
    assert set(send(box.port, study.images)) == {0}
    time.sleep(0.8)
    box.until(study.uid, "sent")
    assert len(whole(archive, study)) == 1
    assert node.counters.of("images") == {"new": len(study.images), "repeated": 2 * len(study.images)}


def test_images_that_come_late_give_another_series(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    box.start()
    assert set(send(box.port, [*study.mr[:-1], *study.pet])) == {0}
    box.until(study.uid, "sent")
    assert set(send(box.port, study.mr[-1:])) == {0}
    box.until(study.uid, "receiving")
    box.until(study.uid, "sent")
    assert sorted(map(len, archive.series(study.uid).values())) == [len(study.mr) - 1, len(study.mr)]


def test_own_results_are_not_fused(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    # Both rules would take the result.
    box.write(
        rules=f'{RULES}\n[[rules]]\nname = "any"\nmr = {{ description = "t2*" }}\nother = {{ modality = "OT" }}\n'
    )
    box.start()
    send(box.port, study.images)
    box.until(study.uid, "sent")
    assert set(send(box.port, archive.got)) == {0}
    box.until(study.uid, "receiving")
    box.until(study.uid, "sent")
    assert len(whole(archive, study)) == 1


def test_what_does_not_fit_is_kept_and_named(box: Box, archive: Archive, make_study: Make) -> None:
    alone, twice, partial = make_study(1), make_study(2), make_study(3)
    box.start()
    send(box.port, alone.mr)
    for image in twice.pet[:3]:
        image.SeriesInstanceUID = "1.2.3.2.8"
    send(box.port, twice.images)
    send(box.port, partial.images[:-2])
    box.until(alone.uid, "does not fit")
    box.until(twice.uid, "does not fit")
    box.until(partial.uid, "failed")
    problems = {
        study["study"]: [*study["problems"], *(r["problem"] for r in study["results"])]
        for study in box.status()["studies"]
    }
    assert problems[alone.uid] == ["rule 'MR with PET': no series fits other"]
    assert problems[twice.uid] == ["rule 'MR with PET': other fits 2 series (1.2.3.2.2, 1.2.3.2.8): make it narrower"]
    assert "should have 6 slices and 4 are here" in problems[partial.uid][0]
    assert archive.got == []
    # What was missing comes.
    send(box.port, partial.images[-2:])
    box.until(partial.uid, "sent")


def test_new_rules_are_applied_at_the_next_start(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    box.write(rules=RULES.replace("pet*", "nothing"))
    box.start()
    send(box.port, study.images)
    box.until(study.uid, "does not fit")
    box.stop()
    box.write()
    box.start()
    box.until(study.uid, "sent")
    assert len(whole(archive, study)) == 1


def test_sent_when_the_archive_is_back(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    archive.close()
    node = box.start()
    send(box.port, study.images)
    wait(lambda: node.counters.of("sending_failed").get("", 0) >= 3)
    (result,) = box.status()["studies"][0]["results"]
    assert result["state"] == "sending"
    assert "cannot be reached" in result["problem"]
    box.stop()
    box.start()
    wait(lambda: "cannot be reached" in box.status()["studies"][0]["results"][0]["problem"])
    archive.open()
    box.until(study.uid, "sent")
    assert whole(archive, study) == [result["series"]]


@pytest.fixture
def choosy(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether servers of this process, the archive among them, take only what they were told to; a node takes all."""

    def choose(value: bool) -> None:
        monkeypatch.setattr("pynetdicom._config.UNRESTRICTED_STORAGE_SERVICE", not value)

    return choose


def test_archives_that_take_one_encoding_alone(
    box: Box, place: Archive, make_study: Make, choosy: Callable[[bool], None]
) -> None:
    studies = [make_study(number) for number in (1, 2)]
    box.start()
    for study, syntaxes in zip(studies, ([ExplicitVRLittleEndian], [ImplicitVRLittleEndian]), strict=True):
        choosy(False)
        send(box.port, study.images)
        choosy(True)
        place.open(syntaxes)
        box.until(study.uid, "sent")
        place.close()
        assert len(whole(place, study)) == 1
    encodings = {image.file_meta.TransferSyntaxUID for image in place.got}
    assert encodings == {ExplicitVRLittleEndian, ImplicitVRLittleEndian}
    assert np.array_equal(pixels(place, studies[0]), pixels(place, studies[1]))


def test_archive_that_takes_no_such_images(
    box: Box, place: Archive, make_study: Make, choosy: Callable[[bool], None]
) -> None:
    study = make_study(1)
    box.start()
    send(box.port, study.images)
    choosy(True)
    place.open([JPEGBaseline8Bit])
    wait(lambda: "Secondary Capture" in json.dumps(box.status()))
    (result,) = box.status()["studies"][0]["results"]
    assert result["state"] == "sending"
    assert result["problem"] == f"ARCHIVE at 127.0.0.1:{place.port} takes no Secondary Capture images"
    assert place.got == []


def test_stopped_while_it_fuses(
    box: Box, archive: Archive, make_study: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "Worker", Worker)
    study = make_study(1)
    box.start()
    send(box.port, study.images)
    box.until(study.uid, "fusing")
    started = time.monotonic()
    box.stop()
    assert time.monotonic() - started < 5
    assert not [record for record in caplog.records if record.levelname == "ERROR" and "node" in record.name]
    box.start()
    box.until(study.uid, "sent")
    assert len(whole(archive, study)) == 1


def test_refused_images_are_sent_again(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    archive.answers = [0xA700, 0xC000]
    node = box.start()
    send(box.port, study.images)
    box.until(study.uid, "sent")
    assert node.counters.of("sending_failed") == {"": 2}
    assert len(whole(archive, study)) == 1


def test_images_that_the_archive_has_already_are_delivered(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    archive.answers = [0x0111]
    node = box.start()
    send(box.port, study.images)
    box.until(study.uid, "sent")
    assert node.counters.of("sending_failed") == {}
    assert len(archive.got) == len(study.mr) - 1


def test_delays_grow_until_it_is_given_up(
    box: Box, place: Archive, make_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = box.start()
    delays = []
    postpone = node.spool.database.postpone

    def noted(result: str, seconds: float, reason: str) -> None:
        delays.append(seconds)
        postpone(result, seconds, reason)

    monkeypatch.setattr(node.spool.database, "postpone", noted)
    study = make_study(1)
    send(box.port, study.images)
    wait(lambda: len(delays) >= 3)
    assert delays[:3] == [0.2, 0.4, 0.4]
    node.settings = replace(node.settings, destination=replace(node.settings.destination, give_up=0))
    box.until(study.uid, "unsent")
    # Until the next start.
    box.stop()
    place.open()
    box.start()
    box.until(study.uid, "sent")
    assert len(whole(place, study)) == 1


def test_restart_goes_on(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    box.start()
    send(box.port, study.mr)
    box.stop()
    assert box.status()["running"] is False
    box.start()
    assert box.status()["running"] is True
    send(box.port, study.pet)
    box.until(study.uid, "sent")
    assert len(whole(archive, study)) == 1


def test_files_that_are_gone_are_forgotten(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    box.start()
    send(box.port, study.mr)
    box.stop()
    (lost, *_) = (box.folder / "spool" / "studies").rglob("*.dcm")
    lost.unlink()
    stray = lost.with_name("1.2.3.99.dcm")
    stray.write_bytes(b"written, not acknowledged")
    box.start()
    assert not stray.exists()
    assert box.status()["studies"][0]["series"][0]["images"] == len(study.mr) - 1
    send(box.port, study.images)
    box.until(study.uid, "sent")
    assert len(whole(archive, study)) == 1


def test_old_studies_are_deleted(box: Box, archive: Archive, make_study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, waiting, alone = (make_study(number) for number in (1, 2, 3))
    monkeypatch.setattr(service, "_CLEANING", 0.2)
    node = box.start()
    send(box.port, sent.images)
    box.until(sent.uid, "sent")
    archive.close()
    send(box.port, waiting.images)
    send(box.port, alone.mr)
    box.until(waiting.uid, "sending")
    box.until(alone.uid, "does not fit")
    time.sleep(0.5)
    assert len(box.states()) == 3
    node.settings = replace(node.settings, keep=0)
    wait(lambda: list(box.states()) == [waiting.uid])
    time.sleep(0.5)
    assert box.states() == {waiting.uid: "sending"}
    folders = {name: list((box.folder / "spool" / name).iterdir()) for name in ("studies", "results", "deleted")}
    assert [path.name for path in folders["studies"]] == [waiting.uid]
    assert len(folders["results"]) == 1
    assert folders["deleted"] == []
    archive.open()
    wait(lambda: box.states() == {})
    assert len(whole(archive, waiting)) == 1
    # A study that comes again is fused again, into the same series.
    before = archive.series(sent.uid)
    archive.got.clear()
    node.settings = replace(node.settings, keep=3600)
    send(box.port, sent.images)
    box.until(sent.uid, "sent")
    assert archive.series(sent.uid) == before


@pytest.mark.usefixtures("archive")
def test_results_without_a_rule_are_deleted(box: Box, make_study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(1)
    monkeypatch.setattr(service, "_CLEANING", 0.2)
    box.start()
    send(box.port, [*study.mr, *study.pet[:-1]])
    box.until(study.uid, "failed")
    box.stop()
    results = box.folder / "spool" / "results"
    assert len(list(results.iterdir())) == 1
    box.write(rules=RULES.replace("pet*", "nothing"))
    node = box.start()
    box.until(study.uid, "does not fit")
    assert len(list(results.iterdir())) == 1
    node.settings = replace(node.settings, keep=0)
    wait(lambda: not list(results.iterdir()))


@pytest.mark.parametrize(
    ("failures", "state"),
    [
        ([{"passing": True}] * 2, "sent"),
        ([{"passing": True}, {"passing": False}], "failed"),
        ([{"passing": True}] * 3, "failed"),
        # A full disk is waited for.
        ([{"passing": True, "full": True}] * 4, "sent"),
    ],
)
@pytest.mark.usefixtures("archive")
def test_failures_that_may_pass_are_tried_again(
    box: Box,
    make_study: Make,
    monkeypatch: pytest.MonkeyPatch,
    shared: Worker,
    failures: list[dict[str, bool]],
    state: str,
) -> None:
    monkeypatch.setattr(service, "_FUSING_DELAY", 0.1)
    monkeypatch.setattr(service, "_FUSING_ATTEMPTS", 3)
    fuse, left = shared.fuse, list(failures)

    def failing(*arguments: Any) -> Fused:
        if left:
            raise FusingError("no luck", **left.pop(0))
        return fuse(*arguments)

    monkeypatch.setattr(shared, "fuse", failing)
    study = make_study(1)
    box.start()
    send(box.port, study.images)
    box.until(study.uid, state)
    assert left == []


@pytest.mark.usefixtures("archive")
def test_others_go_before_one_that_took_too_long(
    box: Box, make_study: Make, monkeypatch: pytest.MonkeyPatch, shared: Worker
) -> None:
    """One attempt at a time, each after a delay; what the first one has done is kept."""
    monkeypatch.setattr(service, "_FUSING_DELAY", 0.1)
    long, other = make_study(1), make_study(2)
    fuse, attempts, found = shared.fuse, [], []

    def fuse_slowly(rule: Any, mr: Path, second: Path, output: Path) -> Fused:
        study = long if any(mr.glob(f"{long.uid}.*")) else other
        attempts.append(study.uid)
        if study is long and attempts.count(long.uid) <= 2:
            found.append(output.exists())
            output.mkdir(exist_ok=True)
            wait(lambda: len(box.states()) == 2 and "receiving" not in box.states().values())
            raise FusingError("took more than 1 minutes", passing=True, ended=True)
        return fuse(rule, mr, second, output)

    monkeypatch.setattr(shared, "fuse", fuse_slowly)
    node = box.start()
    for study in (long, other):
        send(box.port, study.images)
    for study in (long, other):
        box.until(study.uid, "sent")
    assert attempts == [long.uid, other.uid, long.uid, long.uid]
    assert node.counters.of("fusing_failed") == {"": 2}
    assert found == [False, True]


@pytest.mark.usefixtures("archive")
def test_nothing_names_the_patient(box: Box, make_study: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    good, bad, other = make_study(1), make_study(2), make_study(3)
    for image in bad.pet:
        image.PatientName, image.PatientID = "Secret^Other", "ID9"
    del other.mr[2]
    box.start()
    for study in (good, bad, other):
        send(box.port, study.images)
    box.until(good.uid, "sent")
    box.until(bad.uid, "failed")
    box.until(other.uid, "failed")
    written = [record.getMessage() for record in caplog.records if record.name.startswith("dmfnet_fast")]
    assert len(written) > 5
    names = [str(path) for path in (box.folder / "spool").rglob("*")]
    for text in (*written, *names, json.dumps(box.status())):
        assert "secret" not in text.lower()
        assert "ID1" not in text
        assert "ID9" not in text
