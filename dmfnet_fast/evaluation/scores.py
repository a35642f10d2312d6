"""Methods run on pairs, every picture scored by all metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from statistics import median

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.errors import DMFNetError, OutOfMemoryError
from dmfnet_fast.evaluation.dataset import Grey, Pair, grey
from dmfnet_fast.evaluation.methods import AsJPEG, Method, Saved
from dmfnet_fast.evaluation.statistics import Comparison, Estimate, comparisons, estimates
from dmfnet_fast.metrics import METRICS, fusion_metrics

EIGHT_BIT = (0.0, 255.0)


@dataclass(frozen=True)
class Scored:
    """What all methods scored on one pair: `metrics[label][name]`; milliseconds where a method is timed."""

    pair: Pair
    metrics: dict[str, dict[str, float]]
    milliseconds: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One method on the pairs of one modality.

    Attributes:
        estimates: by metric.
        against: the baseline, by metric; None for the baseline itself.
        milliseconds: median time of fusing one pair, on this machine, beside everything else; None if not timed.
    """

    label: str
    estimates: dict[str, Estimate]
    against: dict[str, Comparison] | None
    milliseconds: float | None


@dataclass(frozen=True)
class Table:
    """All methods on the pairs of one modality."""

    modality: str
    pairs: int
    rows: list[Row]


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

    def values(self, modality: str, label: str) -> NDArray[np.float64]:
        """(pairs, metrics) of one method."""
        of_modality = (s.metrics[label] for s in self.scored if s.pair.modality == modality)
        return np.array([[values[metric.name] for metric in METRICS] for values in of_modality])

    def tables(self) -> list[Table]:
        """One for each modality."""
        result = []
        for modality in dict.fromkeys(s.pair.modality for s in self.scored):
            baseline = self.values(modality, self.baseline)
            rows = [self._row(modality, label, baseline) for label in self.about]
            result.append(Table(modality, len(baseline), rows))
        return result

    def _row(self, modality: str, label: str, baseline: NDArray[np.float64]) -> Row:
        names = [metric.name for metric in METRICS]
        values = self.values(modality, label)
        against = None
        if label != self.baseline:
            compared = comparisons(values, baseline, [metric.better for metric in METRICS])
            against = dict(zip(names, compared, strict=True))
        times = [s.milliseconds[label] for s in self.scored if s.pair.modality == modality and label in s.milliseconds]
        return Row(label, dict(zip(names, estimates(values), strict=True)), against, median(times) if times else None)


def fuse_all(pair: Pair, methods: Sequence[Method]) -> tuple[dict[str, Saved], dict[str, float]]:
    """Every method's picture, and milliseconds where it is timed.

    Raises:
        DMFNetError: the pair cannot be read, or a method has no picture; the message names the method.
    """
    try:
        _ = pair.sources
    except DMFNetError as error:
        raise DMFNetError(f"{pair}: {error}") from error
    pictures: dict[str, Saved] = {}
    milliseconds: dict[str, float] = {}
    for method in methods:
        if isinstance(method, AsJPEG):
            pictures[method.label] = method.compress(pictures[method.method.label])
            continue
        try:
            method.prepare(pair)
            started = time.perf_counter()
            pictures[method.label] = method.fuse(pair)
        except OutOfMemoryError:
            raise
        except DMFNetError as error:
            raise DMFNetError(f"{pair}, {method.label}: {error}") from error
        if method.timed:
            milliseconds[method.label] = 1000 * (time.perf_counter() - started)
    return pictures, milliseconds


def _score(pictures: dict[str, Grey], a: Grey, b: Grey) -> dict[str, dict[str, float]]:
    return {label: fusion_metrics(picture, a, b) for label, picture in pictures.items()}


class _Here(Executor):
    """Does what it is given at once, in this process."""

    def submit(self, function, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        future: Future[object] = Future()
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
        methods: how; an `AsJPEG` comes after the method whose pictures it saves.
        baseline: label of one of them.
        workers: processes that compute metrics, while this one fuses.
        shown: gives the pairs one after the other, and may show how far it is.

    Raises:
        OutOfMemoryError: a worker was killed, or a picture is too large for an engine.
    """
    evaluation = Evaluation({method.label: method.about for method in methods}, baseline)
    running: list[tuple[Pair, Future[dict[str, dict[str, float]]], dict[str, float]]] = []
    try:
        with _pool(workers) as pool:
            for pair in shown(pairs):
                try:
                    pictures, milliseconds = fuse_all(pair, methods)
                    greys = {label: grey(picture, EIGHT_BIT) for label, picture in pictures.items()}
                    running.append((pair, pool.submit(_score, greys, *pair.greys), milliseconds))
                except OutOfMemoryError:
                    raise
                except DMFNetError as error:
                    evaluation.problems.append(str(error))
            evaluation.scored += [Scored(pair, future.result(), took) for pair, future, took in running]
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            "a process that computed metrics was killed, as the system does when memory runs out; use fewer --workers"
        ) from error
    return evaluation
