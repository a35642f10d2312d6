"""An evaluation as one HTML page that holds everything it shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dmfnet_fast.evaluation.dataset import Grey, Pair, grey
from dmfnet_fast.evaluation.methods import Method, Saved
from dmfnet_fast.evaluation.report import NOTE, best, compared, number, title
from dmfnet_fast.evaluation.scores import EIGHT_BIT, Evaluation, Row, Table, fuse_all
from dmfnet_fast.metrics import METRICS
from dmfnet_fast.pictures import to_8_bit
from dmfnet_fast.similarity import filtered

ZOOM = 64  # pixels of the part that is enlarged
SHOWN = 256  # CSS pixels of the smaller side of every picture
FULL_COLOUR = 64  # grey levels of difference that are drawn in full colour
DARKER, BRIGHTER = (70, 130, 255), (255, 120, 30)

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { border-bottom: 1px solid #8886; padding: .25rem .6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td small { color: #888; white-space: nowrap; }
td.best { font-weight: 650; }
.wide { overflow-x: auto; }
.pictures td, .pictures th { border: 0; padding: .2rem; text-align: center; font-weight: 500; }
.pictures img { display: block; image-rendering: pixelated; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
"""


def _image(pixels: NDArray[np.uint8], alternative: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    height, width = pixels.shape[:2]
    scale = SHOWN / min(height, width)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}" '
        f'width="{round(width * scale)}" height="{round(height * scale)}">'
    )


def _difference(fused: Grey, brighter: Grey) -> NDArray[np.uint8]:
    """Where a picture is darker or brighter than the brighter of its sources, in colours on black."""
    change = fused.astype(np.float64) - brighter
    strength = (np.abs(change) / FULL_COLOUR).clip(max=1)[..., None]
    return np.rint(np.where(change[..., None] > 0, BRIGHTER, DARKER) * strength).astype(np.uint8)


def disputed(greys: Sequence[Grey]) -> tuple[slice, slice]:
    """The square in which pictures of one scene differ most from their mean: rows and columns."""
    pictures = np.stack([picture.astype(np.float64) for picture in greys])
    side = min(ZOOM, *pictures.shape[1:])
    window = np.full(side, 1 / side)
    sums = filtered(np.abs(pictures - pictures.mean(axis=0)).sum(axis=0), window, 0)
    top, left = (int(place) for place in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(top, top + side), slice(left, left + side)


def _pictures(pair: Pair, pictures: dict[str, Saved]) -> str:
    """A pair and what was made of it: whole, enlarged, and as differences."""
    sources = {"MRI": pair.sources[0], pair.modality: pair.sources[1]}
    shown = {label: to_8_bit(source.pixels, source.values or EIGHT_BIT) for label, source in sources.items()}
    shown |= pictures
    greys = {label: grey(picture, EIGHT_BIT) for label, picture in pictures.items()}
    part = disputed([*greys.values(), np.maximum(*pair.greys)])
    brighter = np.maximum(*pair.greys)
    rows = [
        [escape(label) for label in shown],
        [_image(picture, label) for label, picture in shown.items()],
        [_image(np.ascontiguousarray(picture[part]), f"{label}, enlarged") for label, picture in shown.items()],
        [
            _image(_difference(greys[label], brighter), f"{label}, difference") if label in greys else ""
            for label in shown
        ],
    ]
    heads = ["", "whole", "enlarged", "against max(MRI, b)"]
    lines = [
        f"<tr><th>{head}</th>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for head, row in zip(heads, rows, strict=True)
    ]
    return f'<h3>{escape(str(pair))}</h3><div class="wide"><table class="pictures">{"".join(lines)}</table></div>'


def chosen(evaluation: Evaluation, modality: str, count: int) -> list[Pair]:
    """Pairs to show: from the one with the best objective of the first method to the one with the worst."""
    first = next(iter(evaluation.about))
    scored = [s for s in evaluation.scored if s.pair.modality == modality]
    scored.sort(key=lambda s: s.metrics[first]["objective"])
    places = np.unique(np.linspace(0, len(scored) - 1, min(count, len(scored))).round().astype(int))
    return [scored[place].pair for place in places]


def _plot(evaluation: Evaluation, table: Table) -> str:
    """The objective of every pair, a line of dots for each method, with the mean and its interval."""
    left, width, line = 220, 760, 26
    values = {row.label: evaluation.values(table.modality, row.label)[:, -1] for row in table.rows}
    top = max(float(v.max()) for v in values.values()) * 1.05 or 1.0

    def x(value: float) -> float:
        return left + width * value / top

    parts = []
    for n, row in enumerate(table.rows):
        y = 14 + n * line
        estimate = row.estimates["objective"]
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(row.label)}</text>')
        parts += [f'<circle cx="{x(v):.1f}" cy="{y}" r="3" fill="#48f" fill-opacity=".45"/>' for v in values[row.label]]
        low, high = x(estimate.low), x(estimate.high)
        parts.append(f'<rect x="{low:.1f}" y="{y - 7}" width="{high - low:.1f}" height="14" fill="#f72" opacity=".5"/>')
        mean = x(estimate.mean)
        parts.append(
            f'<line x1="{mean:.1f}" x2="{mean:.1f}" y1="{y - 9}" y2="{y + 9}" stroke="#f72" stroke-width="3"/>'
        )
    bottom = 14 + len(table.rows) * line
    step = 0.1 if top > 0.25 else 0.05
    for tick in np.arange(0, top, step):
        parts.append(f'<text x="{x(float(tick)):.1f}" y="{bottom + 8}" text-anchor="middle">{tick:.2f}</text>')
    return f'<svg width="{left + width + 20}" height="{bottom + 14}">{"".join(parts)}</svg>'


def _scores(row: Row, winners: dict[str, str], timed: bool) -> str:
    cells = [escape(row.label)]
    if timed:
        cells.append("" if row.milliseconds is None else f"{row.milliseconds:.0f}")
    line = "".join(f"<td>{cell}</td>" for cell in cells)
    for metric in METRICS:
        estimate = row.estimates[metric.name]
        kind = ' class="best"' if winners[metric.name] == row.label else ""
        interval = f"{number(estimate.low)}–{number(estimate.high)}"
        line += f"<td{kind}>{number(estimate.mean)}<br><small>{interval}</small></td>"
    return f"<tr>{line}</tr>"


def _table(evaluation: Evaluation, table: Table) -> str:
    heads = "".join(f"<th>{title(metric.name)}<br><small>{metric.unit}</small></th>" for metric in METRICS)
    timed = any(row.milliseconds is not None for row in table.rows)
    winners = best(table)
    lines = [f"<tr><th>method</th>{'<th>ms</th>' if timed else ''}{heads}</tr>"]
    lines += [_scores(row, winners, timed) for row in table.rows]
    result = f'<div class="wide"><table>{"".join(lines)}</table></div>'
    others = [row for row in table.rows if row.against is not None]
    if others:
        lines = [f"<tr><th>method</th>{heads}</tr>"]
        for row in others:
            assert row.against is not None
            cells = (compared(row.against[metric.name]).replace(", ", "<br><small>", 1) for metric in METRICS)
            lines.append(
                f"<tr><td>{escape(row.label)}</td>{''.join(f'<td>{cell}</small></td>' for cell in cells)}</tr>"
            )
        result += f"<p>Compared with {escape(evaluation.baseline)}, pair by pair:</p>"
        result += f'<div class="wide"><table>{"".join(lines)}</table></div>'
    return result


def to_html(evaluation: Evaluation, methods: Sequence[Method], heading: str, pictures: int) -> str:
    """The page.

    Args:
        methods: as they were evaluated; they fuse the pairs that are shown once more.
        pictures: pairs to show of each modality.
    """
    parts = [f"<h1>{escape(heading)}</h1><p>{escape(NOTE)}</p><ul>"]
    parts += [f"<li>{escape(label)}: {escape(about)}</li>" for label, about in evaluation.about.items()]
    parts.append("</ul>")
    for table in evaluation.tables():
        parts += [f"<h2>{table.modality}-MRI, {table.pairs} pairs</h2>", _table(evaluation, table)]
        parts += ["<p>Objective of every pair, its mean and interval:</p>", _plot(evaluation, table)]
        parts += [_pictures(pair, fuse_all(pair, methods)[0]) for pair in chosen(evaluation, table.modality, pictures)]
    if any(evaluation.scored) and pictures:
        parts.append(
            f"<p>Shown are pairs from the best to the worst objective of {escape(next(iter(evaluation.about)))}; "
            f"enlarged is the {ZOOM}x{ZOOM} part in which the methods differ most. Differences: orange where a picture "
            f"is brighter than the brighter source, blue where it is darker, in full colour from {FULL_COLOUR} of 255."
            "</p>"
        )
    if evaluation.problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in evaluation.problems)
        parts.append(f"<h2>Left out, for all methods</h2><ul>{items}</ul>")
    parts.append("<p>Not a medical device. Metrics do not judge diagnostic value.</p>")
    head = f'<meta charset="utf-8"><title>{escape(heading)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
