"""Methods run on pairs, every image scored by all measures."""

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

# Of one method on one pair, by name; None where there is nothing to measure.
Scores = dict[str, float | None]


@dataclass(frozen=True)
class Scored:
    """What all methods scored on one pair: `metrics[label][name]`; milliseconds where a method is timed."""

    pair: Pair
    metrics: dict[str, Scores]
    milliseconds: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One method on the pairs of one modality.

    Attributes:
        estimates: by measure; None where no pair has a score.
        against: the baseline, by measure; None for the baseline itself.
        milliseconds: median time of fusing one pair, on this machine, beside everything else; None if not timed.
    """

    label: str
    estimates: dict[str, Estimate | None]
    against: dict[str, Comparison | None] | None
    milliseconds: float | None


@dataclass(frozen=True)
class Table:
    """All methods on the pairs of one modality."""

    modality: str
    pairs: int
    rows: list[Row]

    @property
    def measures(self) -> list[Measure]:
        """Those that any method has a score of."""
        return [m for m in MEASURES if any(row.estimates[m.name] is not None for row in self.rows)]


@dataclass
class Evaluation:
    """What came of it.

    Attributes:
        about: every method, by label.
        baseline: label of the method that the others are compared with.
        scored: pairs that all methods fused; the others are left out for all, or unlike would be compared.
        problems: why pairs were left out, one line each.
    """

    about: dict[str, str]
    baseline: str
    scored: list[Scored] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of_modality(self, modality: str) -> list[Scored]:
        return [scored for scored in self.scored if scored.pair.modality == modality]

    def values(self, modality: str, label: str, name: str) -> NDArray[np.float64]:
        """One measure of one method, (pairs,); NaN where there is none."""
        return np.array([s.metrics[label][name] for s in self.of_modality(modality)], np.float64)

    def tables(self) -> list[Table]:
        """One for each modality."""
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
    """The pair's images.

    Raises:
        DMFNetError: they cannot be read; the message names the pair.
    """
    try:
        return pair.read()
    except DMFNetError as error:
        raise DMFNetError(f"{pair}: {error}") from error


def fuse_all(scene: Scene, methods: Sequence[Method]) -> tuple[dict[str, Saved], dict[str, float]]:
    """Every method's image, and milliseconds where it is timed.

    Raises:
        DMFNetError: a method has no image; the message names the pair and the method.
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
    """All measures of each of the fused images, by label."""
    gray_a, gray_b = luminance(a), luminance(b)
    return {
        label: {**fusion_metrics(luminance(image), gray_a, gray_b), **color_measures(image, b)}
        for label, image in images.items()
    }


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Here(Executor):
    """Does what it is given at once, in this process."""

    def submit(
        self, function: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        future: Future[Result] = Future()
        future.set_result(function(*args, **kwargs))
        return future


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    # Fresh processes: copies of one that holds an engine's threads could hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else _Here()
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
    """Fuse and score.

    Args:
        pairs: what to fuse.
        methods: how; an `AsJPEG` comes after the method whose images it saves.
        baseline: label of one of them.
        workers: processes that compute metrics, while this one fuses.
        shown: gives the pairs one after the other, and may show how far it is.

    Raises:
        OutOfMemoryError: a worker was killed, or an image is too large for an engine.
    """
    evaluation = Evaluation({method.label: method.about for method in methods}, baseline)
    running: deque[tuple[Pair, Future[dict[str, Scores]], dict[str, float]]] = deque()

    def finish_one() -> None:
        pair, future, took = running.popleft()
        evaluation.scored.append(Scored(pair, future.result(), took))

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
                # Images wait in memory until they are scored: no more of them than keep the workers busy.
                while len(running) > 2 * workers:
                    finish_one()
            while running:
                finish_one()
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            "a process that computed metrics was killed, as the system does when memory runs out; use fewer --workers"
        ) from error
    return evaluation
