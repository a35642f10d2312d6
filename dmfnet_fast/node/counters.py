"""What a running node counts, for its metrics."""

from __future__ import annotations

import threading
from collections import Counter


class Counters:
    """Numbers by name and label, changed by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, label: str = "", amount: float = 1) -> None:
        """Add to a number, which begins at 0."""
        with self._lock:
            self._numbers[name, label] += amount  # type: ignore[assignment]

    def of(self, name: str) -> dict[str, float]:
        """The numbers of a name by their labels."""
        with self._lock:
            return {label: number for (other, label), number in self._numbers.items() if other == name}
