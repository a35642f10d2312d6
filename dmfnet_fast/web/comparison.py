"""Two images under a divider, as HTML for notebooks."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmfnet_fast.images.formats.png import encoded

_MOST_PIXELS = 640  # width of the view, in CSS pixels
_CONTROLS = 96  # height of what is below the images
_LINE = 24  # of one more line there
# Notebooks keep what is embedded. Twice the width of the view is all that screens show of it.
_LONGEST = 2 * _MOST_PIXELS
_MOST_BYTES = 2_950_000  # of the files of all images, which take less than 4 MB as text

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body {{ margin: 0; font: 14px/1.5 system-ui, sans-serif; color-scheme: light dark; }}
#stage {{ position: relative; width: {width}px; max-width: 100%; aspect-ratio: {ratio}; background: #000; }}
img {{ position: absolute; inset: 0; width: 100%; height: 100%; }}
#line {{ position: absolute; top: 0; bottom: 0; width: 2px; background: #fff; pointer-events: none; }}
input {{ width: {width}px; max-width: 100%; margin: 4px 0; }}
</style>
<div id="stage"><img id="under" alt=""><img id="over" alt=""><div id="line"></div></div>
<input id="divider" type="range" min="0" max="100" value="50" aria-label="Divider">
<div>left <select id="left" aria-label="Left image">{left}</select>
right <select id="right" aria-label="Right image">{right}</select> Research only, not for diagnosis.{note}</div>
<script>
const images = {{{images}}};
const $ = (id) => document.getElementById(id);
function draw() {{
  const share = $("divider").value;
  for (const [shown, select] of [["under", "left"], ["over", "right"]]) {{
    const name = $(select).value;
    if ($(shown).alt !== name) Object.assign($(shown), {{ alt: name, src: images[name] }});
  }}
  $("over").style.clipPath = `inset(0 0 0 ${{share}}%)`;
  $("line").style.left = `${{share}}%`;
}}
for (const id of ["divider", "left", "right"]) $(id).addEventListener("input", draw);
$("stage").addEventListener("pointermove", (event) => {{
  if (!event.buttons) return;
  $("divider").value = 100 * event.offsetX / $("stage").clientWidth;
  draw();
}});
draw();
</script></html>"""


def _within(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """An image, or its means over areas if a side is longer than this, in pixels."""
    height, width = image.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _embedded(images: dict[str, NDArray[np.uint8]]) -> tuple[dict[str, bytes], tuple[int, int]]:
    """PNG files of images of one size, by name, as large as the limits allow; and their height and width."""
    longest = min(max(next(iter(images.values())).shape[:2]), _LONGEST)
    while True:
        shown = {name: _within(image, longest) for name, image in images.items()}
        files = {name: encoded(image) for name, image in shown.items()}
        if sum(map(len, files.values())) <= _MOST_BYTES or longest == 1:
            height, width = next(iter(shown.values())).shape[:2]
            return files, (height, width)
        longest = max(1, longest * 3 // 4)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """A fused image with its sources; a notebook shows it with a divider to drag, and nothing is loaded for that.

    A notebook is given at most 4 MB, for which images are shown smaller: by their means over areas, with at most 1280
    pixels a side, or fewer where these hold too much detail. Both attributes keep all pixels.

    Attributes:
        fused: the fused image, as `Fuser.fuse` returns it.
        images: what is shown, by name and in full size: (H, W) or (H, W, 3) uint8 of one size.
    """

    fused: Any
    images: dict[str, NDArray[np.uint8]]

    def __repr__(self) -> str:
        height, width = next(iter(self.images.values())).shape[:2]
        return f"Comparison({', '.join(self.images)}, {width}x{height})"

    def _repr_html_(self) -> str:
        height, width = next(iter(self.images.values())).shape[:2]
        shown = min(_MOST_PIXELS, max(width, _MOST_PIXELS // 2))
        names = list(self.images)

        def options(chosen: str) -> str:
            return "".join(f"<option{' selected' if name == chosen else ''}>{escape(name)}</option>" for name in names)

        files, (rows, columns) = _embedded(self.images)
        shrunk = (
            f"Shown with {columns}x{rows} of {width}x{height} pixels." if (rows, columns) != (height, width) else ""
        )
        data = {name: base64.b64encode(content).decode() for name, content in files.items()}
        page = _PAGE.format(
            width=shown,
            ratio=f"{width} / {height}",
            left=options(names[0]),
            right=options(names[-1]),
            note=f"<br>{shrunk}" if shrunk else "",
            images=", ".join(f'"{name}": "data:image/png;base64,{content}"' for name, content in data.items()),
        )
        total = round(shown * height / width) + _CONTROLS + (_LINE if shrunk else 0)
        # In a frame of its own, the view and the notebook cannot change each other.
        return (
            f'<iframe title="Fused image and its sources" sandbox="allow-scripts" width="{shown}" height="{total}" '
            f'style="border: 0; max-width: 100%" srcdoc="{escape(page)}"></iframe>'
        )
