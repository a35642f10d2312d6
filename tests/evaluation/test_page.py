"""The HTML report: well-formed, self-contained, and with the right images."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmfnet_fast.evaluation import tiles
from dmfnet_fast.evaluation.dataset import Pair
from dmfnet_fast.evaluation.page import chosen, worst_by_color
from dmfnet_fast.evaluation.scores import Evaluation, Scored
from dmfnet_fast.images.color import Canvas, luminance
from dmfnet_fast.images.io import read_image
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.metrics.fidelity import color_difference
from dmfnet_fast.metrics.fusion import MEASURES
from dmfnet_fast.phantom import MODALITIES, Modality, make_phantom
from tests.evaluation.running import run


class _Page(HTMLParser):
    """Checks that tags are closed, and collects the text and the images with their alternative texts."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[tuple[str, bytes]] = []
        self.text = ""
        self.feed(re.sub(r"<(circle|rect|line)([^>]*)/>", r"<\1\2></\1>", content))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            given = dict(attributes)
            kind, data = str(given["src"]).split(",", 1)
            assert kind == "data:image/webp;base64"
            self.images.append((str(given["alt"]), base64.b64decode(data)))
        if tag not in ("img", "br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _is_exact(data: bytes) -> bool:
    """Whether a WebP file has a lossless chunk."""
    return data[12:16] == b"VP8L" or b"VP8L" in data[:64]


def test_page(report: Path) -> None:
    content = (report / "report.html").read_text()
    page = _Page(content)
    assert not page.open
    assert "<b>|" in page.text, "labels are escaped"
    assert "://" not in content, "the page fetches nothing"
    assert '<table class="images">' in content
    # Two pairs in each of three modalities: two sources whole and enlarged, and nine methods whole, enlarged and as
    # differences. In both color modalities also the worst colors of two engines and the folder.
    assert len(page.images) == 3 * 2 * (2 * 2 + 9 * 3) + 2 * 3 * (2 + 9)
    assert {_pixels(data).shape for _, data in page.images} == {(64, 64, 3)}
    exact = {alternative for alternative, data in page.images if _is_exact(data)}
    assert {"MRI, enlarged", "same, enlarged", "same, difference", "MRI", "same"} == {
        name for name in exact if "JPEG" not in name and name.startswith(("MRI", "same"))
    }
    assert "lossy" in page.text


def test_page_shows_the_fused_images(data: Path, theirs: Path, tmp_path: Path) -> None:
    """The page of a single folder shows the image, its difference, and the pair with the worst colors."""
    run("--data", data, "--fused", f"x={theirs}", "--no-trivial", "--modality", "PET", "--pictures", 1, "-o", tmp_path)
    page = _Page((tmp_path / "report.html").read_text())
    shown = dict(page.images[:-3])
    name = re.search(r"PET-MRI (\d+)", page.text.split("Objective of every pair")[1])
    assert name
    folder = data / "test" / "PET-MRI"
    fused = np.asarray(Image.open(theirs / "PET-MRI" / f"{name[1]}.jpg").convert("RGB"))
    a, b = (read_image(folder / kind / f"{name[1]}.png") for kind in ("MRI", "PET"))
    np.testing.assert_array_equal(_pixels(shown["x, enlarged"]), fused)
    np.testing.assert_array_equal(_pixels(shown["MRI, enlarged"])[..., 0], a)
    np.testing.assert_array_equal(_pixels(shown["PET, enlarged"]), b)
    expected = tiles.difference(luminance(fused), np.maximum(luminance(a), luminance(b)))
    np.testing.assert_array_equal(_pixels(shown["x, difference"]), expected)
    worst = re.search(r"Worst colors of x: PET-MRI (\d+)", page.text)
    assert worst
    errors = {
        path.stem: color_difference(
            np.asarray(Image.open(theirs / "PET-MRI" / f"{path.stem}.jpg").convert("RGB")), read_image(path)
        )
        for path in (folder / "PET").iterdir()
    }
    assert worst[1] == max(errors, key=lambda stem: float(errors[stem].sum() / (errors[stem] > 0).sum()))
    np.testing.assert_array_equal(_pixels(page.images[-2][1]), read_image(folder / "PET" / f"{worst[1]}.png"))


def test_differences_worked_out_by_hand() -> None:
    """Orange is brighter and blue is darker than the brighter source, in steps of 8, saturated from 64."""
    fused = np.array([[100, 104, 108, 132, 164, 255], [100, 96, 92, 68, 36, 0]], np.uint8)
    brighter = np.full((2, 6), 100, np.uint8)
    orange, blue = np.array(tiles.BRIGHTER), np.array(tiles.DARKER)
    assert orange[0] > orange[2]
    assert blue[2] > blue[0]
    parts = [0, 0, 1 / 8, 1 / 2, 1, 1]
    expected = [[np.rint(color * part) for part in parts] for color in (orange, blue)]
    np.testing.assert_array_equal(tiles.difference(fused, brighter), expected)


def _tag(content: str) -> tuple[tuple[int, int], tuple[int, int], bytes]:
    """Width and height on the page, width and height in the file, and the file."""
    found = re.fullmatch(r'<img src="data:image/webp;base64,(\S*)" alt="a&lt;b" width="(\d+)" height="(\d+)">', content)
    assert found
    data = base64.b64decode(found[1])
    return (int(found[2]), int(found[3])), Image.open(io.BytesIO(data)).size, data


@pytest.mark.parametrize(
    ("size", "on_page", "in_file"),
    [((64, 64), (256, 256), (64, 64)), ((600, 300), (512, 256), (512, 256)), ((256, 300), (256, 300), (256, 300))],
)
def test_sizes_on_the_page(size: tuple[int, int], on_page: tuple[int, int], in_file: tuple[int, int]) -> None:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    assert _tag(tiles.whole(image, "a<b"))[:2] == (on_page, in_file)
    assert _tag(tiles.difference_shown(image[..., 0], image[..., 0], "a<b"))[:2] == (on_page, in_file)


def test_enlarged_parts_are_exact_and_whole_images_are_close() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 256, 3), np.uint8)
    part = (slice(100, 164), slice(10, 74))
    _, _, exact = _tag(tiles.enlarged(image, part, "a<b"))
    np.testing.assert_array_equal(_pixels(exact), image[part])
    smooth = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    _, _, lossy = _tag(tiles.whole(smooth, "a<b"))
    assert np.abs(_pixels(lossy).astype(int) - smooth).max() <= 6


@pytest.mark.parametrize("modality", MODALITIES)
def test_sixteen_methods_take_less_than_8_mb(modality: Modality) -> None:
    """A page with three pairs in each of three modalities, and the worst colors of four methods in two of them."""
    head = make_phantom(0, 256)
    b = head.other(modality)
    fused = Canvas(head.mri, b, rules=Rules(kept_chroma=0, invention=True)).finish(
        (head.mri / 127.5 - 1).astype(np.float32)
    )
    whole, enlarged = tiles.whole(fused, ""), tiles.enlarged(fused, (slice(96, 160), slice(96, 160)), "")
    difference = tiles.difference_shown(head.mri, luminance(b), "")
    assert 9 * (18 * (len(whole) + len(enlarged)) + 16 * len(difference)) + 2 * 4 * 18 * len(enlarged) < 7.5e6


def test_part_of_largest_disagreement() -> None:
    first = np.zeros((256, 200), np.uint8)
    second = first.copy()
    second[100:120, 150:180] = 9
    rows, columns = tiles.disputed([first, second])
    assert (rows.stop - rows.start, columns.stop - columns.start) == (64, 64)
    assert rows.start <= 100 < 120 <= rows.stop
    assert columns.start <= 150 < 180 <= columns.stop


def _evaluation(name: str, values: list[float | None]) -> Evaluation:
    evaluation = Evaluation({"x": "a method"}, "x")
    for n, value in enumerate(values):
        pair = Pair("PET-MRI", ("MRI", "PET"), str(n), Path("a"), Path("b"))
        evaluation.scored.append(Scored(pair, {"x": {m.name: value if m.name == name else 0.0 for m in MEASURES}}, {}))
    return evaluation


def test_shown_pairs_span_best_to_worst() -> None:
    evaluation = _evaluation("objective", [0.3, 0.9, 0.1, 0.5, 0.7])
    for count, names in ((0, ""), (1, "2"), (2, "21"), (3, "231"), (9, "20341")):
        assert [pair.name for pair in chosen(evaluation, "PET-MRI", count)] == list(names)


def test_worst_by_color() -> None:
    found = worst_by_color(_evaluation("ab error", [3.0, None, 9.0, 1.0]), "PET-MRI", "x")
    assert found is not None
    assert found.pair.name == "2"
    assert worst_by_color(_evaluation("ab error", [None, None]), "PET-MRI", "x") is None
