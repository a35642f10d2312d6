"""With a real archive: Orthanc, and its DICOMweb plugin."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pynetdicom
import pytest
from PIL import Image
from pydicom.uid import RLELossless

from dmfnet_fast.volumes.phantom import make_head, write_enhanced
from tests.node.conftest import Box, Study, free_port, send, wait

# The study root's information models.
FIND, MOVE = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.2"
Make = Callable[[int], Study]
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass
class Orthanc:
    """A running Orthanc."""

    http: int
    port: int

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", timeout=10) as answer:
            content: bytes = answer.read()
            return content

    def put(self, path: str, content: Any) -> None:
        url, data = f"http://127.0.0.1:{self.http}/{path}", json.dumps(content).encode()
        urllib.request.urlopen(urllib.request.Request(url, data, method="PUT"), timeout=10).close()

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def ready(self) -> bool:
        try:
            self.get("system")
        except OSError:
            return False
        return True

    def _ask(self, kind: str, study: str, call: str, *more: Any) -> list[Any]:
        entity = pynetdicom.AE("SCANNER")
        entity.add_requested_context(kind)
        association = entity.associate("127.0.0.1", self.port, ae_title="ORTHANC")
        assert association.is_established
        query = pydicom.Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study
        query.NumberOfStudyRelatedSeries = ""
        answers = list(getattr(association, call)(query, *more, kind))
        association.release()
        return answers

    def find(self, study: str) -> Any:
        """What Orthanc says of a study to a C-FIND."""
        return self._ask(FIND, study, "send_c_find")[0][1]

    def move(self, study: str) -> int:
        """Have Orthanc send a study to the node by C-MOVE; the status."""
        return int(self._ask(MOVE, study, "send_c_move", "FUSE")[-1][0].Status)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.exists():
        pytest.skip("needs Orthanc with its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb)")
    tmp_path = tmp_path_factory.mktemp("orthanc")
    started = Orthanc(free_port(), free_port())
    settings = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "HttpPort": started.http,
        "DicomPort": started.port,
        "DicomAet": "ORTHANC",
        "DicomModalities": {"scanner": ["SCANNER", "127.0.0.1", 1]},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True},
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    try:
        wait(lambda: started.ready() or process.poll() is not None, 30)
        assert process.poll() is None, (tmp_path / "orthanc.log").read_text()
        yield started
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def orthanc(started: Orthanc, box: Box) -> Orthanc:
    """Sends to the node, which sends to it."""
    box.archive.port = started.port
    box.write(callers=["ORTHANC"], archive="ORTHANC")
    started.put("modalities/node", ["FUSE", "127.0.0.1", box.port])
    return started


def test_moved_to_the_node_and_fused_back(box: Box, orthanc: Orthanc, make_study: Make) -> None:
    study = make_study(7)
    box.start()
    assert set(send(orthanc.port, study.images, called="ORTHANC")) == {0}
    assert orthanc.move(study.uid) == 0
    box.until(study.uid, "sent")
    assert int(orthanc.find(study.uid).NumberOfStudyRelatedSeries) == 3

    found = orthanc.json(f"dicom-web/studies/{study.uid}/series?00080060=OT")
    (series,) = (one["0020000E"]["Value"][0] for one in found)
    uids = orthanc.json(f"dicom-web/studies/{study.uid}/series/{series}/instances")
    assert len(uids) == len(study.mr)
    instances = [
        one
        for one in orthanc.json("instances?expand")
        if one["MainDicomTags"]["SOPInstanceUID"] in {item["00080018"]["Value"][0] for item in uids}
    ]
    brightest = 0
    for instance in instances:
        rendered = np.asarray(Image.open(io.BytesIO(orthanc.get(f"instances/{instance['ID']}/preview"))))
        assert rendered.shape == (48, 48, 3)
        data = pydicom.dcmread(io.BytesIO(orthanc.get(f"instances/{instance['ID']}/file")))
        assert np.array_equal(rendered, data.pixel_array)
        brightest = max(brightest, rendered.max())
        mr = study.mr[data.InstanceNumber - 1]
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert np.allclose(data[keyword].value, mr[keyword].value, atol=1e-3)
        assert data.FrameOfReferenceUID == mr.FrameOfReferenceUID
        assert data.PatientID == mr.PatientID
    assert brightest > 100


def test_lossy_and_multi_frame_images_are_moved(box: Box, orthanc: Orthanc, tmp_path: Path) -> None:
    """Which Orthanc sends to those alone that offer to take them."""
    write_enhanced(make_head(seed=1, size=48).mr, tmp_path / "enhanced.dcm")
    several = pydicom.dcmread(tmp_path / "enhanced.dcm")
    several.compress(RLELossless, generate_instance_uid=False)
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    images = [several, *(pydicom.dcmread(folder / name) for name in ("JPEG2000.dcm", "JPEG-lossy.dcm"))]
    box.start()
    assert set(send(orthanc.port, images, called="ORTHANC")) == {0}
    for image in images:
        assert orthanc.move(image.StudyInstanceUID) == 0
        (path,) = (box.folder / "spool" / "studies").rglob(f"{image.SOPInstanceUID}.dcm")
        kept = pydicom.dcmread(path)
        assert kept.file_meta.TransferSyntaxUID == image.file_meta.TransferSyntaxUID
        assert kept.PixelData == image.PixelData
