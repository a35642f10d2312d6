"""From images that come in to results that go out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.node.conftest import Archive, Box, Study, send

Make = Callable[[int], Study]


def test_study_comes_back_fused(box: Box, archive: Archive, make_study: Make) -> None:
    study = make_study(1)
    box.start()
    assert set(send(box.port, study.images)) == {0}
    box.until(study.uid, "sent")
    ((series, images),) = archive.series(study.uid).items()
    assert len(images) == len(set(images)) == len(study.mr)
    assert series not in (study.mr[0].SeriesInstanceUID, study.pet[0].SeriesInstanceUID)
    for image, mr in zip(sorted(archive.got, key=lambda one: one.InstanceNumber), study.mr, strict=True):
        assert image.PatientID == "ID1"
        assert np.allclose(image.ImagePositionPatient, mr.ImagePositionPatient, atol=1e-3)
        assert image.pixel_array.shape == (48, 48, 3)
    assert max(image.pixel_array.max() for image in archive.got) > 100
