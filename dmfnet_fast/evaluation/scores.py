"""Running methods on pairs, and scoring every fused image by all measures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import median
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import DMFNetError, OutOfMemoryError
from dmfnet_fast.evaluation.dataset import Pair, Saved, Scene
from dmfnet_fast.evaluation.methods import AsJPEG, Method
from dmfnet_fast.evaluation.statistics import Comparison, Estimate, comparison, estimate
from dmfnet_fast.images.color import luminance
from dmfnet_fast.metrics.fusion import MEASURES, Measure, color_measures, fusion_metrics

# Scores of one method on one pair, by measure; None if a measure is undefined.
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Scored:
    """The scores of all methods on one pair.

    Attributes:
        metrics: scores by label of the method and name of the measure.
        milliseconds: time of fusing the pair, by label, for methods that are timed.
    """

    pair: Pair
    metrics: dict[str, Scores]
    milliseconds: dict[str, float]


@dataclass(frozen=True)
class Row:
    """Summary of one method over the pairs of one modality.

    Attributes:
        label: label of the method.
        estimates: mean score by measure; None if no pair has a score.
        against: comparison with the baseline by measure; None for the baseline itself.
        milliseconds: median time of fusing a pair on this machine, while metrics are computed as well; None if the
            method is not timed.
    """

    label: str
    estimates: dict[str, Estimate | None]
    against: dict[str, Comparison | None] | None
    milliseconds: float | None


@dataclass(frozen=True)
class Table:
    """Summary of all methods over the pairs of one modality."""

    modality: str
    pairs: int
    rows: list[Row]

    @property
    def measures(self) -> list[Measure]:
        """The measures for which any method has a score."""
        return [m for m in MEASURES if any(row.estimates[m.name] is not None for row in self.rows)]


@dataclass
class Evaluation:
    """Results of an evaluation.

    Attributes:
        about: descriptions of all methods, by label.
        baseline: label of the method with which the others are compared.
        scored: the pairs that all methods fused. Other pairs are excluded for all methods, so that all are compared on
            the same pairs.
        problems: why pairs were excluded, one message each.
    """

    about: dict[str, str]
    baseline: str
    scored: list[Scored] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of_modality(self, modality: str) -> list[Scored]:
        return [scored for scored in self.scored if scored.pair.modality == modality]

    def values(self, modality: str, label: str, name: str) -> NDArray[np.float64]:
        """The scores of one method by one measure, (pairs,); NaN if a pair has none."""
        return np.array([s.metrics[label][name] for s in self.of_modality(modality)], np.float64)

    def tables(self) -> list[Table]:
        """One table per modality."""
        modalities = dict.fromkeys(s.pair.modality for s in self.scored)
        return [
            Table(modality, len(self.of_modality(modality)), [self._row(modality, label) for label in self.about])
            for modality in modalities
        ]

    def _row(self, modality: str, label: str) -> Row:
        values = {measure.name: self.values(modality, label, measure.name) for measure in MEASURES}
        against = None
        if label != self.baseline:
            against = {
                measure.name: comparison(
                    values[measure.name], self.values(modality, self.baseline, measure.name), measure.better
                )
                for measure in MEASURES
            }
        times = [s.milliseconds[label] for s in self.of_modality(modality) if label in s.milliseconds]
        estimates = {name: estimate(column) for name, column in values.items()}
        return Row(label, estimates, against, median(times) if times else None)


def read(pair: Pair) -> Scene:
    """Read the images of a pair.

    Raises:
        DMFNetError: an image cannot be read; the message names the pair.
    """
    try:
        return pair.read()
    except DMFNetError as error:
        raise DMFNetError(f"{pair}: {error}") from error


def fuse_all(scene: Scene, methods: Sequence[Method]) -> tuple[dict[str, Saved], dict[str, float]]:
    """Fuse a pair by all methods: images by label, and milliseconds by label for methods that are timed.

    Raises:
        DMFNetError: a method cannot fuse the pair; the message names the pair and the method.
    """
    images: dict[str, Saved] = {}
    milliseconds: dict[str, float] = {}
    for method in methods:
        if isinstance(method, AsJPEG):
            images[method.label] = method.compress(images[method.method.label])
            continue
        try:
            method.prepare(scene)
            started = time.perf_counter()
            images[method.label] = method.fuse(scene)
        except OutOfMemoryError:
            raise
        except DMFNetError as error:
            raise DMFNetError(f"{scene.pair}, {method.label}: {error}") from error
        if method.timed:
            milliseconds[method.label] = 1000 * (time.perf_counter() - started)
    return images, milliseconds


def score(images: dict[str, Saved], a: Saved, b: Saved) -> dict[str, Scores]:
    """The scores of each fused image, by label."""
    gray_a, gray_b = luminance(a), luminance(b)
    return {
        label: {**fusion_metrics(luminance(image), gray_a, gray_b), **color_measures(image, b)}
        for label, image in images.items()
    }


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _InlineExecutor(Executor):
    """Runs functions immediately, in this process."""

    def submit(
        self, function: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        future: Future[Result] = Future()
        future.set_result(function(*args, **kwargs))
        return future


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    # Spawned, as forking a process with an engine's threads could deadlock.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else _InlineExecutor()
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def evaluate(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    baseline: str,
    workers: int,
    shown: Callable[[Sequence[Pair]], Iterable[Pair]],
) -> Evaluation:
    """Fuse all pairs by all methods, and score the results.

    Args:
        pairs: the pairs to fuse.
        methods: the methods to run; an `AsJPEG` must come after the method whose images it compresses.
        baseline: label of the method with which the others are compared.
        workers: number of processes that compute metrics while this process fuses; with 1, this process does both.
        shown: iterates over the pairs, and may show progress.

    Raises:
        OutOfMemoryError: a worker was killed, or an image is too large for an engine.
    """
    evaluation = Evaluation({method.label: method.about for method in methods}, baseline)
    running: deque[tuple[Pair, Future[dict[str, Scores]], dict[str, float]]] = deque()

    def finish_one() -> None:
        pair, future, milliseconds = running.popleft()
        evaluation.scored.append(Scored(pair, future.result(), milliseconds))

    try:
        with _pool(workers) as pool:
            for pair in shown(pairs):
                try:
                    scene = read(pair)
                    images, milliseconds = fuse_all(scene, methods)
                except OutOfMemoryError:
                    raise
                except DMFNetError as error:
                    evaluation.problems.append(str(error))
                    continue
                running.append((pair, pool.submit(score, images, *scene.saved), milliseconds))
                # Images stay in memory until they are scored, so only enough to keep the workers busy are queued.
                while len(running) > 2 * workers:
                    finish_one()
            while running:
                finish_one()
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            "a process that computes metrics was killed, probably because memory ran out; use fewer --workers"
        ) from error
    return evaluation
