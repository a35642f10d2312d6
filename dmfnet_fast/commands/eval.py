"""`dmfnet-eval`: how well engines fuse, against others' images and trivial fusions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np

from dmfnet_fast import __version__
from dmfnet_fast.artifacts.atomic import make_folder
from dmfnet_fast.commands.shared import FAILED, Item, command, progress
from dmfnet_fast.errors import DMFNetError
from dmfnet_fast.evaluation.dataset import Pair, find_pairs
from dmfnet_fast.evaluation.methods import AsJPEG, Folder, Method, opened
from dmfnet_fast.evaluation.page import to_html
from dmfnet_fast.evaluation.report import to_json, to_markdown, to_text
from dmfnet_fast.evaluation.report_files import check_replaceable, write_reports
from dmfnet_fast.evaluation.scores import evaluate
from dmfnet_fast.fuser import Range
from dmfnet_fast.images.color import check_range

MOST_WORKERS = 8


def _spread(pairs: list[Pair], limit: int | None) -> list[Pair]:
    """At most `limit` pairs of each modality, evenly spaced."""
    if limit is None:
        return pairs
    kept = []
    for modality in dict.fromkeys(pair.modality for pair in pairs):
        group = [pair for pair in pairs if pair.modality == modality]
        places = np.unique(np.linspace(0, len(group) - 1, min(limit, len(group))).round().astype(int))
        kept += [group[place] for place in places]
    return kept


def _with_jpeg(methods: Sequence[Method], quality: int | None) -> list[Method]:
    """Every method, and its images as JPEG beside it; those that are in files stay as they are."""
    result: list[Method] = []
    for method in methods:
        result.append(method)
        if quality is not None and not isinstance(method, Folder):
            result.append(AsJPEG(method, quality))
    labels = [method.label for method in result]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise DMFNetError(f"two methods are called {', '.join(twice)}: give each a name of its own, LABEL=...")
    return result


def _baseline(named: str | None, methods: Sequence[Method]) -> str:
    labels = [method.label for method in methods]
    if named is None:
        folders = [method.label for method in methods if isinstance(method, Folder)]
        return next(iter([*folders, *(label for label in labels if label == "maximum"), labels[0]]))
    if named not in labels:
        raise DMFNetError(f"--baseline {named}: is none of {', '.join(labels)}")
    return named


def _shown(items: Sequence[Item], label: str) -> Iterator[Item]:
    with progress(items, label) as bar:
        yield from bar


@command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with SPLIT/B-A/{B,A}/NAME.png, such as test/CT-MRI/{CT,MRI}.",
)
@click.option("--split", default="test", help='Folder of DATA to evaluate on; "." for DATA itself.')
@click.option(
    "--modality",
    "modalities",
    multiple=True,
    metavar="NAME",
    help="Keep to folders of this name (CT-MRI), or of this B (CT). Repeat for more.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="[LABEL=]ENGINE[@PRECISION]",
    help="A shipped network by its name, or a file, as dmfnet-fuse takes it. Repeat for more.",
)
@click.option(
    "--fused",
    "folders",
    multiple=True,
    metavar="[LABEL=]DIR",
    help="Images fused elsewhere: DIR/B-A/NAME.png, or .jpg. Repeat for more.",
)
@click.option("--trivial/--no-trivial", default=True, help="Also the mean and the maximum of both luminances.")
@click.option("--jpeg", type=click.IntRange(1, 100), metavar="QUALITY", help="Also what is fused here, as such JPEG.")
@click.option("--baseline", metavar="LABEL", help="Compare with this; else the first --fused, else the maximum.")
@click.option("--limit", type=click.IntRange(1), help="Pairs of each modality, evenly spaced; else all.")
@click.option(
    "--pictures",
    "shown",
    default=3,
    type=click.IntRange(0),
    help="Pairs of each modality shown on the page; with 0 no worst colors either.",
)
@click.option(
    "--range-a", type=(float, float), metavar="LO HI", help="Values that mean black and white in 16-bit or float A."
)
@click.option("--range-b", type=(float, float), metavar="LO HI", help="The same for B.")
@click.option("--device", help="cpu, cuda or cuda:N, of all engines.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each engine.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help=f"Processes that compute metrics; by default one for each core, at most {MOST_WORKERS}.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("evaluation"),
    help="Folder for report.md, report.json and report.html.",
)
@click.version_option(package_name="dmfnet-fast")
def main(
    data: Path,
    split: str,
    modalities: tuple[str, ...],
    engines: tuple[str, ...],
    folders: tuple[str, ...],
    trivial: bool,
    jpeg: int | None,
    baseline: str | None,
    limit: int | None,
    shown: int,
    range_a: Range | None,
    range_b: Range | None,
    device: str | None,
    threads: int | None,
    workers: int | None,
    output: Path,
) -> None:
    """Score fusions pair by pair, and compare them.

    The pairs are in folders B-A, such as CT-MRI, which hold a folder of each: B gives a pair's colors and A, the MRI,
    is what dmfnet-fuse takes first. Where both would be called the same, as in MR-MR, the folders are A and B.

    All methods are scored on the same pairs: one that a method cannot fuse is left out for all, and the exit code is
    then 2. The report holds the images that it shows: it is as confidential as they are.

    Not a medical device.
    """
    if not (engines or folders or trivial):
        raise click.UsageError("nothing to evaluate: give --engine or --fused")
    for stated, name in ((range_a, "--range-a"), (range_b, "--range-b")):
        if stated is not None:
            check_range(stated, name)
    pairs, problems = find_pairs(data, split, modalities, range_a, range_b)
    pairs = _spread(pairs, limit)
    with opened(engines, folders, trivial, device, threads) as alone:
        methods = _with_jpeg(alone, jpeg)
        chosen = _baseline(baseline, methods)
        make_folder(output)
        check_replaceable(output)
        scoring = partial(_shown, label="fusing and scoring")
        evaluation = evaluate(pairs, methods, chosen, workers or min(MOST_WORKERS, os.cpu_count() or 1), scoring)
        evaluation.problems += problems
        if not evaluation.scored:
            raise DMFNetError("no pair was fused by all methods: " + "; ".join(evaluation.problems[:3]))
        source = data.resolve().name
        heading = f"Fusion of {source}" + ("" if split == "." else f", {split}")
        texts = {
            "report.md": to_markdown(evaluation, heading),
            "report.json": to_json(evaluation, version=__version__, data=source, split=split),
            "report.html": to_html(evaluation, methods, heading, shown, partial(_shown, label="drawing the page")),
        }
    paths = write_reports(output, texts)
    click.echo(f"{to_text(evaluation)}\n")
    for problem in evaluation.problems:
        click.echo(f"error: {problem}", err=True)
    for path in paths:
        click.echo(path)
    if evaluation.problems:
        sys.exit(FAILED)
