"""Words of messages."""

from __future__ import annotations

from dmfnet_fast.wording import alternatives


def test_names_in_a_sentence() -> None:
    assert alternatives(["PNG"]) == "PNG"
    assert alternatives(["PNG", "TIFF"]) == "PNG or TIFF"
    assert alternatives(["PNG", "JPEG", "TIFF"]) == "PNG, JPEG or TIFF"
