"""The evaluation report as a self-contained HTML page."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

import numpy as np

from dmfnet_fast.errors import DMFNetWarning
from dmfnet_fast.evaluation import tiles
from dmfnet_fast.evaluation.dataset import Pair, Saved, Scene
from dmfnet_fast.evaluation.methods import AsJPEG, Method, Trivial
from dmfnet_fast.evaluation.report import ABSENT, COMPARED, NOTE, best, compared, heading, number, title
from dmfnet_fast.evaluation.report_files import COMMAND
from dmfnet_fast.evaluation.scores import Evaluation, Row, Scored, Scores, Table, fuse_all, read
from dmfnet_fast.html_page import web_page
from dmfnet_fast.images.color import luminance
from dmfnet_fast.metrics.fidelity import color_difference
from dmfnet_fast.metrics.fusion import Measure

MOST_WORST = 4  # number of methods whose worst colors are shown


def _images(scene: Scene, images: dict[str, Saved]) -> str:
    """A pair and its fused images: whole, enlarged, and as differences from the brighter source."""
    shown = [*zip(scene.pair.kinds, scene.saved, strict=True), *images.items()]
    grays = {label: luminance(image) for label, image in images.items()}
    brighter = np.maximum(*scene.grays)
    part = tiles.disputed([*grays.values(), brighter])
    rows = [
        [escape(label) for label, _ in shown],
        [tiles.whole(image, label) for label, image in shown],
        [tiles.enlarged(image, part, f"{label}, enlarged") for label, image in shown],
        ["", "", *(tiles.difference_shown(gray, brighter, f"{label}, difference") for label, gray in grays.items())],
    ]
    heads = ["", "whole", "enlarged", f"against max({', '.join(scene.pair.kinds)})"]
    lines = [
        f"<tr><th>{escape(head)}</th>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for head, row in zip(heads, rows, strict=True)
    ]
    return f'<h3>{escape(str(scene.pair))}</h3><div class="wide"><table class="images">{"".join(lines)}</table></div>'


def _worst_colors(label: str, scores: dict[str, Scores], scene: Scene, images: dict[str, Saved]) -> str:
    """The part in which one method's colors differ most from b's, enlarged, in both sources and of all methods."""
    b = scene.saved[1]
    part = tiles.largest_sum(color_difference(images[label], b))
    others = [name for name in images if name != label]
    shown = [(kind, image, "") for kind, image in zip(scene.pair.kinds, scene.saved, strict=True)]
    for name in (label, *others):
        bleached, error = (number(scores[name][measure]) for measure in ("bleached", "ab error"))
        shown.append((name, images[name], f"<br><small>bleached {bleached} %, ab error {error}</small>"))
    figures = (
        f"<figure>{tiles.enlarged(image, part, name)}<figcaption>{escape(name)}{note}</figcaption></figure>"
        for name, image, note in shown
    )
    head = f"<h3>Worst colors of {escape(label)}: {escape(str(scene.pair))}</h3>"
    return f'{head}<div class="tiles">{"".join(figures)}</div>'


def chosen(evaluation: Evaluation, modality: str, count: int) -> list[Pair]:
    """Pairs to show, evenly spaced from the best to the worst objective of the first method."""
    first = next(iter(evaluation.about))
    scored = evaluation.of_modality(modality)
    order = np.argsort(evaluation.values(modality, first, "objective"), kind="stable")
    places = np.unique(np.linspace(0, len(scored) - 1, min(count, len(scored))).round().astype(int))
    return [scored[order[place]].pair for place in places]


def worst_by_color(evaluation: Evaluation, modality: str, label: str) -> Scored | None:
    """The pair in which a method's colors differ most from b's; None if no pair is in color."""
    errors = evaluation.values(modality, label, "ab error")
    return None if np.isnan(errors).all() else evaluation.of_modality(modality)[int(np.nanargmax(errors))]


def _plot(evaluation: Evaluation, table: Table) -> str:
    """An SVG plot of every pair's objective: a row of dots for each method, with the mean and its interval."""
    left, width, line = 220, 760, 26
    values = {row.label: evaluation.values(table.modality, row.label, "objective") for row in table.rows}
    top = max(float(v.max()) for v in values.values()) * 1.05 or 1.0

    def x(value: float) -> float:
        return left + width * value / top

    parts = []
    for n, row in enumerate(table.rows):
        y = 14 + n * line
        estimate = row.estimates["objective"]
        assert estimate is not None
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
    right, bottom = left + width + 20, bottom + 14
    return f'<svg width="{right}" height="{bottom}" viewBox="0 0 {right} {bottom}">{"".join(parts)}</svg>'


def _scores(row: Row, measures: list[Measure], winners: dict[str, set[str]], timed: bool) -> str:
    cells = [escape(row.label)]
    if timed:
        cells.append("" if row.milliseconds is None else f"{row.milliseconds:.0f}")
    line = "".join(f"<td>{cell}</td>" for cell in cells)
    for measure in measures:
        estimate = row.estimates[measure.name]
        if estimate is None:
            line += f"<td>{ABSENT}</td>"
            continue
        kind = ' class="best"' if row.label in winners[measure.name] else ""
        interval = f"{number(estimate.low)}–{number(estimate.high)}"
        line += f"<td{kind}>{number(estimate.mean)}<br><small>{interval}</small></td>"
    return f"<tr>{line}</tr>"


def _table(evaluation: Evaluation, table: Table) -> str:
    heads = "".join(f"<th>{title(measure)}<br><small>{measure.unit}</small></th>" for measure in table.measures)
    timed = any(row.milliseconds is not None for row in table.rows)
    winners = best(table)
    lines = [f"<tr><th>method</th>{'<th>ms</th>' if timed else ''}{heads}</tr>"]
    lines += [_scores(row, table.measures, winners, timed) for row in table.rows]
    result = f'<div class="wide"><table>{"".join(lines)}</table></div>'
    others = [row for row in table.rows if row.against is not None]
    if others:
        lines = [f"<tr><th>method</th>{heads}</tr>"]
        for row in others:
            assert row.against is not None
            cells = ""
            for measure in table.measures:
                difference, _, wins = compared(row.against[measure.name]).partition(", ")
                cells += f"<td>{difference}<br><small>{wins}</small></td>"
            lines.append(f"<tr><td>{escape(row.label)}</td>{cells}</tr>")
        result += f"<p>{COMPARED} {escape(evaluation.baseline)}:</p>"
        result += f'<div class="wide"><table>{"".join(lines)}</table></div>'
    return result


@dataclass(frozen=True)
class View:
    """A part of the page that shows a pair: `draw` makes it from the scene and the images fused by all methods."""

    pair: Pair
    draw: Callable[[Scene, dict[str, Saved]], str]


def _views(evaluation: Evaluation, modality: str, methods: Sequence[Method], images: int) -> list[View]:
    views = [View(pair, _images) for pair in chosen(evaluation, modality, images)]
    for label in _methods_with_worst_colors(methods) if images else []:
        scored = worst_by_color(evaluation, modality, label)
        if scored is not None:
            views.append(View(scored.pair, partial(_worst_colors, label, scored.metrics)))
    return views


def _methods_with_worst_colors(methods: Sequence[Method]) -> list[str]:
    """Labels of the methods whose worst colors are shown: the first ones, without JPEG copies and trivial fusions."""
    labels = [method.label for method in methods if not isinstance(method, AsJPEG | Trivial)]
    return labels[:MOST_WORST]


def _about_images(first: str, labels: list[str]) -> str:
    text = (
        f"The pairs range from the best to the worst objective of {first}. The part in which the methods differ most "
        "is enlarged."
    )
    if labels:
        text += (
            f" If b is in color, they are followed by the pair of the largest color error (ab error in CIELAB) of each "
            f"of {', '.join(labels)}, enlarged where the error is largest; the scores below it are those of the whole "
            "image."
        )
    return f"<p>{escape(text)}</p><p>{escape(tiles.ABOUT)}</p>"


def to_html(
    evaluation: Evaluation,
    methods: Sequence[Method],
    name: str,
    images: int,
    shown: Callable[[Sequence[View]], Iterable[View]],
) -> str:
    """The page as HTML, under the heading `name`.

    Args:
        evaluation: the results.
        methods: the evaluated methods; they fuse the shown pairs again.
        name: heading of the page.
        images: number of pairs to show of each modality.
        shown: iterates over the views to draw, and may show progress.
    """
    tables = evaluation.tables()
    views = {table.modality: _views(evaluation, table.modality, methods, images) for table in tables}
    drawn: dict[str, list[str]] = {modality: [] for modality in views}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DMFNetWarning)  # issued already when the pairs were scored
        for view in shown([view for of_modality in views.values() for view in of_modality]):
            scene = read(view.pair)
            drawn[view.pair.modality].append(view.draw(scene, fuse_all(scene, methods)[0]))
    parts = [f"<h1>{escape(name)}</h1><p>{escape(NOTE)}</p>"]
    if any(drawn.values()):
        parts.append(_about_images(next(iter(evaluation.about)), _methods_with_worst_colors(methods)))
    parts += ["<ul>", *(f"<li>{escape(label)}: {escape(about)}</li>" for label, about in evaluation.about.items())]
    parts.append("</ul>")
    for table in tables:
        parts += [f"<h2>{escape(heading(table))}</h2>", _table(evaluation, table)]
        parts += ["<p>Objective of every pair, its mean and interval:</p>", _plot(evaluation, table)]
        parts += drawn[table.modality]
    if evaluation.problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in evaluation.problems)
        parts.append(f"<h2>Pairs excluded for all methods</h2><ul>{items}</ul>")
    parts.append("<p>Not a medical device. Metrics do not judge diagnostic value.</p>")
    return web_page(name, "".join(parts), COMMAND)
