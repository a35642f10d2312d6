"""`dmfnet-eval`: scores engines and compares them with other methods' images and trivial fusions."""

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
from dmfnet_fast.commands.shared import FAILED, PATH, Item, command, progress
from dmfnet_fast.errors import DMFNetError, ImageError
from dmfnet_fast.evaluation.dataset import Pair, find_pairs
from dmfnet_fast.evaluation.methods import AsJPEG, Folder, Method, open_methods
from dmfnet_fast.evaluation.page import to_html
from dmfnet_fast.evaluation.report import to_json, to_markdown, to_text
from dmfnet_fast.evaluation.report_files import check_replaceable, write_reports
from dmfnet_fast.evaluation.scores import evaluate
from dmfnet_fast.fuser import Range
from dmfnet_fast.images.color import check_range

MOST_WORKERS = 8


def _evenly_spaced(pairs: list[Pair], limit: int | None) -> list[Pair]:
    """At most `limit` evenly spaced pairs of each modality."""
    if limit is None:
        return pairs
    selected = []
    for modality in dict.fromkeys(pair.modality for pair in pairs):
        group = [pair for pair in pairs if pair.modality == modality]
        indices = np.unique(np.linspace(0, len(group) - 1, min(limit, len(group))).round().astype(int))
        selected += [group[index] for index in indices]
    return selected


def _with_jpeg(methods: Sequence[Method], quality: int | None) -> list[Method]:
    """All methods, each followed by its images as JPEG if a `quality` is given; folders have no JPEG copy."""
    result: list[Method] = []
    for method in methods:
        result.append(method)
        if quality is not None and not isinstance(method, Folder):
            result.append(AsJPEG(method, quality))
    labels = [method.label for method in result]
    duplicates = sorted({label for label in labels if labels.count(label) > 1})
    if duplicates:
        raise DMFNetError(f"two methods are called {', '.join(duplicates)}: give each a label of its own, LABEL=...")
    return result


def _baseline(requested: str | None, methods: Sequence[Method]) -> str:
    """The requested baseline; by default the first folder, else the maximum, else the first method."""
    labels = [method.label for method in methods]
    if requested is None:
        folders = [method.label for method in methods if isinstance(method, Folder)]
        return next(iter([*folders, *(label for label in labels if label == "maximum"), labels[0]]))
    if requested not in labels:
        raise DMFNetError(f"--baseline {requested}: must be one of {', '.join(labels)}")
    return requested


def _with_progress(items: Sequence[Item], label: str) -> Iterator[Item]:
    with progress(items, label) as bar:
        yield from bar


@command()
@click.option(
    "--data",
    type=PATH,
    required=True,
    help="Folder with SPLIT/B-A/{B,A}/NAME.png, such as test/CT-MRI/{CT,MRI}.",
)
@click.option("--split", default="test", help='Folder of DATA to evaluate on; "." for DATA itself.')
@click.option(
    "--modality",
    "modalities",
    multiple=True,
    metavar="NAME",
    help="Use only folders of this name (CT-MRI) or with this B (CT). May be repeated.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="[LABEL=]ENGINE[@PRECISION]",
    help="Name of a shipped network, or a file, as for dmfnet-fuse. May be repeated.",
)
@click.option(
    "--fused",
    "folders",
    multiple=True,
    metavar="[LABEL=]DIR",
    help="Images fused by other software: DIR/B-A/NAME.png or .jpg. May be repeated.",
)
@click.option("--trivial/--no-trivial", default=True, help="Also evaluate the mean and the maximum of both luminances.")
@click.option(
    "--jpeg",
    type=click.IntRange(1, 100),
    metavar="QUALITY",
    help="Also evaluate the results of engines and trivial fusions after JPEG compression.",
)
@click.option(
    "--baseline",
    metavar="LABEL",
    help="Method to compare with; by default the first --fused, else the maximum.",
)
@click.option(
    "--limit", type=click.IntRange(1), help="Evaluate at most this many, evenly spaced pairs of each modality."
)
@click.option(
    "--pictures",
    "shown",
    default=3,
    type=click.IntRange(0),
    help="Pairs of each modality to show on the page; 0 also omits the worst colors.",
)
@click.option("--range-a", type=(float, float), metavar="LO HI", help="Values of black and white in 16-bit or float A.")
@click.option("--range-b", type=(float, float), metavar="LO HI", help="The same for B.")
@click.option("--device", help="Device of all engines: cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each engine.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help=f"Processes that compute metrics; by default one per core, at most {MOST_WORKERS}.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
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
    """Score fusion methods pair by pair, and compare them.

    Pairs are in folders named B-A, such as CT-MRI, which hold a folder B, whose images give the colors, and a folder
    A, whose images (the MRI) are the first argument of dmfnet-fuse. If both have the same name, as in MR-MR, the
    folders are named A and B.

    All methods are scored on the same pairs: a pair that any method cannot fuse is excluded for all, and the exit code
    is then 2. The report contains the images that it shows, and is as confidential as they are.

    Not a medical device.
    """
    if not (engines or folders or trivial):
        raise click.UsageError("nothing to evaluate: give --engine or --fused")
    for stated, name in ((range_a, "--range-a"), (range_b, "--range-b")):
        if stated is not None:
            check_range(stated, name)
    if not (data / split).is_dir():
        raise ImageError(f"{data / split}: no such folder; --split names another one of {data}, or . for {data} itself")
    pairs, problems = find_pairs(data, split, modalities, range_a, range_b)
    pairs = _evenly_spaced(pairs, limit)
    with open_methods(engines, folders, trivial, device, threads) as requested:
        methods = _with_jpeg(requested, jpeg)
        baseline_label = _baseline(baseline, methods)
        make_folder(output)
        check_replaceable(output)
        scoring = partial(_with_progress, label="fusing and scoring")
        workers = workers or min(MOST_WORKERS, os.cpu_count() or 1)
        evaluation = evaluate(pairs, methods, baseline_label, workers, scoring)
        evaluation.problems += problems
        if not evaluation.scored:
            raise DMFNetError("no pair could be fused by all methods: " + "; ".join(evaluation.problems[:3]))
        source = data.resolve().name
        heading = f"Fusion of {source}" + ("" if split == "." else f", {split}")
        texts = {
            "report.md": to_markdown(evaluation, heading),
            "report.json": to_json(evaluation, version=__version__, data=source, split=split),
            "report.html": to_html(
                evaluation, methods, heading, shown, partial(_with_progress, label="drawing the page")
            ),
        }
    paths = write_reports(output, texts)
    click.echo(f"{to_text(evaluation)}\n")
    for problem in evaluation.problems:
        click.echo(f"error: {problem}", err=True)
    for path in paths:
        click.echo(path)
    if evaluation.problems:
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
