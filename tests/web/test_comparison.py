"""What notebooks show of a fused image."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dmfnet_fast import Fuser, ImageError
from dmfnet_fast.errors import DMFNetWarning
from dmfnet_fast.images.io import write_image
from dmfnet_fast.phantom import Phantom
from dmfnet_fast.web import comparison
from dmfnet_fast.web.comparison import Comparison
from tests.web.conftest import Browse


def _images(view: Comparison) -> dict[str, NDArray[Any]]:
    page = html.unescape(re.search('srcdoc="(.*)"', view._repr_html_(), re.S)[1])  # type: ignore[index]
    found = re.findall(r'"(\w+)": "data:image/png;base64,([^"]+)"', page)
    return {name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for name, data in found}


def test_images(fuser: Fuser, phantom: Phantom, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The sources and the fused image, in 8 bits, whatever they are given as."""
    fused = fuser.fuse(phantom.mri, phantom.pet)
    for given in ((phantom.mri, phantom.pet), pair):
        view = fuser.show(*given)
        shown = _images(view)
        np.testing.assert_array_equal(np.asarray(view.fused), fused)
        for name, wanted in (("a", phantom.mri), ("b", phantom.pet), ("fused", fused)):
            np.testing.assert_array_equal(shown[name], wanted)
    assert repr(view) == "Comparison(a, b, fused, 64x64)"
    deep = tmp_path / "ct.png"
    write_image(deep, phantom.ct.astype(np.uint16) * 16)
    with pytest.warns(DMFNetWarning, match="its largest value"):
        view = fuser.show(phantom.mri, deep)
    np.testing.assert_array_equal(_images(view)["b"], np.rint(phantom.ct * (16 * 255 / 4095)).astype(np.uint8))
    assert np.asarray(view.fused).dtype == np.uint16
    stack = np.stack([phantom.mri])
    with pytest.raises(ImageError, match="is a batch: give one image each"):
        fuser.show(stack, stack)


def test_what_a_notebook_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images are embedded smaller, and those full of detail within a limit of bytes; none changes in Python."""
    rows = np.arange(2000, dtype=np.uint16) // 8
    smooth = np.repeat(rows.astype(np.uint8)[:, None], 3000, axis=1)
    view = Comparison(smooth, {"a": smooth, "b": np.stack([smooth] * 3, -1), "fused": smooth})
    shown = _images(view)
    assert {image.shape[:2] for image in shown.values()} == {(853, 1280)}
    assert np.abs(shown["a"][:, 0] - np.interp(np.arange(853) * 2000 / 853 + 1.17, np.arange(2000), rows)).max() <= 1
    assert "Shown with 1280x853 of 3000x2000 pixels." in view._repr_html_()
    assert view.images["a"] is smooth
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    view = Comparison(noise, {"a": noise, "b": noise, "fused": noise})
    assert all(np.array_equal(image, noise) for image in _images(view).values())
    assert "Shown with" not in view._repr_html_()
    monkeypatch.setattr(comparison, "_MOST_BYTES", 100_000)
    assert 75_000 < len(view._repr_html_()) < 100_000 * 4 / 3 + 5_000
    assert "of 200x300 pixels" in view._repr_html_()


def test_in_a_browser(fuser: Fuser, phantom: Phantom, browse: Browse, tmp_path: Path) -> None:
    """The divider moves by keyboard, other images can be chosen, and nothing is loaded."""
    page = tmp_path / "notebook.html"
    page.write_text(f"<!doctype html><title>t</title>{fuser.show(phantom.mri, phantom.pet)._repr_html_()}")
    found = browse("comparison", page.as_uri())
    assert found["shown"] == [["a", "fused", "inset(0px 0px 0px 50%)"], ["b", "fused", "inset(0px 0px 0px 60%)"]]
    assert all(one.startswith(("file:", "data:", "about:")) for one in found["asked"])
    assert not found["complaints"]
