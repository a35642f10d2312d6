"""A fuzzer: damaged series are refused in one sentence, or read as if nothing had happened."""

from __future__ import annotations

import random
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")
pytest.importorskip("gdcm", reason="needs the extra dicom")

from dmfnet_fast.errors import VolumeError
from dmfnet_fast.volumes.reading import read_volume
from tests.volumes.damaging import DAMAGES, flipped_bytes

CASES = 6 * len(DAMAGES)
MEMORY = 64 * 2**20


@pytest.mark.parametrize("case", range(CASES))
def test_damaged_series(case: int, copied: Callable[[str], Path], written: Path) -> None:
    draw = random.Random(case)
    name = draw.choice(["MR", "CT", "PT", "NM", "EMR"])
    folder = copied(name)
    damage = DAMAGES[case % len(DAMAGES)]
    damage(draw.choice(sorted(folder.iterdir())), draw)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            volume = read_volume(folder)
    except VolumeError as error:
        message = str(error)
        assert str(folder) in message
        assert "hantom" not in message
        assert "PHANTOM" not in message
        return
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY
    sound = read_volume(written / name)
    assert volume.shape == sound.shape
    np.testing.assert_allclose(volume.affine, sound.affine, atol=1e-3)
    if damage is not flipped_bytes:  # a byte of a slope or intercept may be a valid other one
        np.testing.assert_array_equal(volume.values, sound.values)
