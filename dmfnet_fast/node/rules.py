"""Which series of a study are fused: decided by rules alone, never guessed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from dmfnet_fast.fuser import Range


@dataclass(frozen=True)
class Series:
    """What rules know of a series."""

    uid: str
    modality: str
    description: str


@dataclass(frozen=True)
class Match:
    """Which series are meant: all that is stated must hold, by one of its alternatives; "*" and "?" stand for text.

    Upper and lower case are the same.
    """

    modality: tuple[str, ...] = ()
    description: tuple[str, ...] = ()
    uid: tuple[str, ...] = ()

    def __call__(self, series: Series) -> bool:
        stated = (
            (self.modality, series.modality),
            (self.description, series.description),
            (self.uid, series.uid),
        )
        return all(
            any(fnmatchcase(text.strip().lower(), pattern.lower()) for pattern in patterns)
            for patterns, text in stated
            if patterns
        )


@dataclass(frozen=True)
class Rule:
    """Which two series are fused, and how; the options are those of `dmfnet-fuse`."""

    name: str
    mr: Match
    other: Match
    grid: Literal["mr", "other"] = "mr"
    register: bool = False
    range_mr: Range | None = None
    range_other: Range | None = None
    colormap: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two series that a rule names, by their UIDs."""

    rule: Rule
    mr: str
    other: str


def decide(rules: Iterable[Rule], series: Sequence[Series]) -> tuple[list[Pair], list[str]]:
    """What to fuse of a study.

    Returns:
        The pairs, each once, by the first rule that names it; and why the other rules name none.
    """
    pairs: list[Pair] = []
    partly, without = [], []
    for rule in rules:
        found = [[one.uid for one in series if match(one)] for match in (rule.mr, rule.other)]
        several = [
            f"{name} fits {len(uids)} series ({', '.join(sorted(uids))}): make it narrower"
            for name, uids in zip(("mr", "other"), found, strict=True)
            if len(uids) > 1
        ]
        missing = [name for name, uids in zip(("mr", "other"), found, strict=True) if not uids]
        if len(missing) == 2:
            without.append(f"rule {rule.name!r}: no series fits")
        elif missing or several:
            partly.append(f"rule {rule.name!r}: {'; '.join([*several, *(f'no series fits {m}' for m in missing)])}")
        elif found[0] == found[1]:
            partly.append(f"rule {rule.name!r}: mr and other fit the same series ({found[0][0]})")
        elif not any((pair.mr, pair.other) == (found[0][0], found[1][0]) for pair in pairs):
            pairs.append(Pair(rule, found[0][0], found[1][0]))
    return pairs, partly or ([] if pairs else without)
