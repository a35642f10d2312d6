"""The page to look at after a volume was fused: the alignment, slices and cuts of both sources and of the result."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmfnet_fast.html_page import encoded_tag, image_tag, web_page
from dmfnet_fast.volumes.display import legend
from dmfnet_fast.volumes.planes import LETTERS, Upright, nearest_plane
from dmfnet_fast.volumes.report import COMMAND, NOTICE, Fusion, to_dict
from dmfnet_fast.volumes.showing import Shown
from dmfnet_fast.volumes.volume import Affine

_PIXELS_PER_MM = 1.4
# WebP: a twentieth larger than by the slowest method, in a third of the time.
_QUALITY, _METHOD = 90, 3
_LINES = (("a", "#888"), ("b", "#e80"), ("fused", "#28f"))


def _tag(image: NDArray[np.uint8], affine: Affine, alternative: str) -> str:
    """An image of a plane whose rows and columns are axes 1 and 2 of `affine`: upright, in its true proportions."""
    upright = Upright(affine)
    pixels = upright(image)
    height, width = (size * step * _PIXELS_PER_MM for size, step in zip(pixels.shape[:2], upright.spacing, strict=True))
    return image_tag(Image.fromarray(pixels), alternative, (width, height), quality=_QUALITY, method=_METHOD)


def _name(shown: Shown) -> str:
    volume = shown.volume
    description = volume.source.description if volume.source.kind == "dicom" else ""
    return " ".join(filter(None, (volume.modality or "volume", description)))


def _legend(shown: Shown) -> str:
    if shown.palette is None:
        return ""
    bar = legend(shown.limits, shown.volume.units, shown.palette)
    return image_tag(bar, "legend", bar.size, lossless=True)


def _rows(fusion: Fusion, rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    bar = _legend(fusion.b)
    heads = "".join(f"<th>{escape(text)}</th>" for text in ("", _name(fusion.a), _name(fusion.b), "fused", ""))
    lines = [f"<tr>{heads}</tr>"]
    for title, images in rows:
        cells = "".join(f"<td>{image}</td>" for image in (*images, bar))
        lines.append(f"<tr><th>{escape(title)}</th>{cells}</tr>")
    return f'<div class="wide smooth"><table class="images">{"".join(lines)}</table></div>'


def _slices(fusion: Fusion) -> str:
    affine = fusion.a.volume.affine
    count = fusion.a.volume.shape[0]
    rows = []
    for number, images in sorted(fusion.looks.whole.items()):
        title = f"slice {number + 1} of {count}"
        rows.append((title, [_tag(image, affine, title) for image in images]))
    return f"<p>{_orientation(affine)}</p>{_rows(fusion, rows)}"


def _orientation(affine: Affine) -> str:
    """Where the patient's sides are in upright slices."""
    plane = nearest_plane(affine)
    left, right, top = LETTERS[plane]
    return f"Slices are nearest to the {plane} plane, with {left} on the left, {right} on the right and {top} above."


def _cuts(fusion: Fusion) -> str:
    looks, a, b = fusion.looks, fusion.a, fusion.b
    row, column, affine = looks.places.row, looks.places.column, a.volume.affine
    across_rows = a.display(a.volume.values[:, row]), b.display(b.volume.values[:, row]), looks.along_row
    across_columns = a.display(a.volume.values[:, :, column]), b.display(b.volume.values[:, :, column])
    parts = [
        ("across slices, along rows", affine[:, [1, 0, 2, 3]], across_rows),
        ("across slices, along columns", affine[:, [2, 0, 1, 3]], (*across_columns, looks.along_column)),
    ]
    return _rows(fusion, [(title, [_tag(image, plane, title) for image in images]) for title, plane, images in parts])


def _plot(means: NDArray[np.float64]) -> str:
    """Mean luminance of each slice as SVG lines."""
    width, height, left = 760, 180, 40
    top = max(float(means.max()), 1.0) * 1.05
    across = left + np.arange(len(means)) * (width / max(len(means) - 1, 1))
    down = 10 + height - means / top * height
    ends = ((height + 14, 0.0), (14, top))
    parts = [f'<text x="{left - 6}" y="{y}" text-anchor="end">{value:.0f}</text>' for y, value in ends]
    for n, (name, color) in enumerate(_LINES):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down[:, n], strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(f'<text x="{left + width + 8}" y="{24 + 18 * n}" style="fill:{color}">{name}</text>')
    size = f'width="{left + width + 70}" height="{height + 30}" viewBox="0 0 {left + width + 70} {height + 30}"'
    return f"<svg {size}>{''.join(parts)}</svg>"


def _facts(fusion: Fusion) -> str:
    record = to_dict(fusion)
    rows: list[tuple[str, str]] = []
    for name, shown in (("a", fusion.a), ("b", fusion.b)):
        low, high = shown.limits
        palette = shown.palette or ("its own colors" if shown.color else "gray")
        notes = "; ".join(record["sources"][name]["notes"])
        rows.append((name, f"{_name(shown)}: {low:.5g} to {high:.5g} {shown.volume.units or ''}, {palette}"))
        if notes:
            rows.append(("", notes))
    slices, height, width = fusion.a.volume.shape
    spacing = " x ".join(f"{step:.3g}" for step in fusion.a.volume.spacing[::-1])
    rows.append(("grid", f"of {fusion.alignment.grid}: {width}x{height}, {slices} slices, {spacing} mm"))
    rows += [(name, str(value)) for name, value in fusion.engine.items()]
    rows += [(name, str(value)) for name, value in record["settings"].items()]
    rows += [(name, text) for name, text in record["versions"].items()]
    return "<table>" + "".join(f"<tr><td>{escape(n)}</td><td>{escape(t)}</td></tr>" for n, t in rows) + "</table>"


def _alignment(fusion: Fusion, drawn: bytes) -> str:
    alignment = fusion.alignment
    how = "registered automatically" if alignment.registered else "aligned by their headers"
    text = (
        f"The volumes were {how}. Look whether the contours follow the other image: yellow is the outline, light blue "
        f"what is bright inside. b covers {alignment.coverage:.0%} of a's head; {alignment.overlap:.0%} of the smaller "
        f"foreground lies in the other one; mutual information {alignment.mutual_information:.3f} bits."
    )
    with Image.open(io.BytesIO(drawn)) as image:
        tag = encoded_tag(drawn, "png", "alignment in three planes", image.size)
    return f"<h2>Alignment</h2><p>{escape(text)}</p>{tag}"


def to_html(fusion: Fusion, drawn: bytes) -> str:
    """The page.

    Args:
        fusion: what it shows.
        drawn: the image of the alignment as PNG.
    """
    title = f"Fused: {fusion.a.volume.modality or 'volume'} with {fusion.b.volume.modality or 'volume'}"
    parts = [f"<h1>{escape(title)}</h1><p><strong>{escape(NOTICE)}</strong></p>"]
    if fusion.warnings:
        items = "".join(f"<li>{escape(warning)}</li>" for warning in fusion.warnings)
        parts.append(f"<h2>Warnings</h2><ul>{items}</ul>")
    parts.append(_alignment(fusion, drawn))
    parts.append("<h2>Slices</h2>" + _slices(fusion))
    parts.append("<h2>Across slices</h2><p>Stripes here that the sources lack would be slices that pump.</p>")
    parts.append(_cuts(fusion))
    parts.append(
        f"<p>Mean luminance of each slice. It changes {fusion.pumping:.2f} times as unevenly from slice to slice as "
        f"the less even source's.</p>{_plot(fusion.looks.means)}"
    )
    parts.append("<h2>What was decided</h2>" + _facts(fusion))
    return web_page(title, "".join(parts), COMMAND)
