"""`dmfnet-eval`: how well engines fuse, against others' pictures and trivial fusions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
import numpy as np

from dmfnet_fast import __version__
from dmfnet_fast.commands.shared import FAILED, command, progress
from dmfnet_fast.errors import DMFNetError
from dmfnet_fast.evaluation.dataset import Pair, find_pairs
from dmfnet_fast.evaluation.methods import AsJPEG, Folder, Method, opened
from dmfnet_fast.evaluation.page import to_html
from dmfnet_fast.evaluation.report import to_dict, to_markdown, to_text
from dmfnet_fast.evaluation.scores import evaluate
from dmfnet_fast.files import make_folder, replacing

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
    """Every method, and its pictures as JPEG beside it; those that are in files stay as they are."""
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


def _shown(pairs: Sequence[Pair]) -> Iterator[Pair]:
    with progress(pairs, "fusing and scoring") as bar:
        shown: Iterable[Pair] = bar
        yield from shown


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder with SPLIT/MODALITY-MRI/{MRI,MODALITY}/NAME.png.",
)
@click.option("--split", default="test", help="Folder of DATA to evaluate on.")
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
    help="Pictures fused elsewhere: DIR/MODALITY-MRI/NAME.png, or .jpg. Repeat for more.",
)
@click.option("--trivial/--no-trivial", default=True, help="Also the mean and the maximum of both luminances.")
@click.option("--jpeg", type=click.IntRange(1, 100), metavar="QUALITY", help="Also what is fused here, as such JPEG.")
@click.option("--baseline", metavar="LABEL", help="Compare with this; else the first --fused, else the maximum.")
@click.option("--limit", type=click.IntRange(1), help="Pairs of each modality, evenly spaced; else all.")
@click.option("--pictures", default=3, type=click.IntRange(0), help="Pairs of each modality shown on the page.")
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
    engines: tuple[str, ...],
    folders: tuple[str, ...],
    trivial: bool,
    jpeg: int | None,
    baseline: str | None,
    limit: int | None,
    pictures: int,
    device: str | None,
    threads: int | None,
    workers: int | None,
    output: Path,
) -> None:
    """Score fusions by twelve metrics, pair by pair, and compare them.

    All methods are scored on the same pairs: one that a method cannot fuse is left out for all, and the exit code is
    then 2. The report holds the pictures that it shows: it is as confidential as they are.

    Not a medical device.
    """
    if not (engines or folders or trivial):
        raise click.UsageError("nothing to evaluate: give --engine or --fused")
    pairs, problems = find_pairs(data, split)
    pairs = _spread(pairs, limit)
    with opened(engines, folders, trivial, device, threads) as alone:
        methods = _with_jpeg(alone, jpeg)
        chosen = _baseline(baseline, methods)
        make_folder(output)
        evaluation = evaluate(pairs, methods, chosen, workers or min(MOST_WORKERS, os.cpu_count() or 1), _shown)
        evaluation.problems += problems
        if not evaluation.scored:
            raise DMFNetError("no pair was fused by all methods: " + "; ".join(evaluation.problems[:3]))
        heading = f"Fusion of {data.resolve().name}, {split}"
        record = to_dict(evaluation, version=__version__, data=data.resolve().name, split=split)
        reports = {
            "report.md": to_markdown(evaluation, heading),
            "report.json": json.dumps(record, indent=1, allow_nan=False) + "\n",
            "report.html": to_html(evaluation, methods, heading, pictures),
        }
    for name, text in reports.items():
        _write(output / name, text)
    click.echo(f"{to_text(evaluation)}\n")
    for problem in evaluation.problems:
        click.echo(f"error: {problem}", err=True)
    for name in reports:
        click.echo(output / name)
    if evaluation.problems:
        sys.exit(FAILED)
