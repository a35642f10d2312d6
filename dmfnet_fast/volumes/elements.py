"""DICOM elements read with suspicion: whatever a file holds, a value of the expected kind or a `VolumeError`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from dmfnet_fast.errors import DMFNetError, VolumeError, require


class damage:
    """In a `with`: turns any error of a DICOM or NIfTI library on a bad file into a `VolumeError`.

    The libraries raise nearly every built-in exception on damaged files. Their words are left out: they may quote
    the file, patient's name included.
    """

    # No generator: it is entered for each element of each file.
    def __init__(self, path: Path, what: str) -> None:
        self._path, self._what = path, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, DMFNetError | MemoryError):
            name = type(error).__name__
            raise VolumeError(f"{self._path}: {self._what}; copy or export it again ({name})") from error


@cache
def _tag(keyword: str) -> Any:
    """The tag of an element, as pydicom has it."""
    return require("pydicom.tag", "dicom").Tag(keyword)


def tags(keywords: Iterable[str]) -> list[Any]:
    """The tags of elements, as pydicom has them."""
    return list(map(_tag, keywords))


class Elements:
    """The elements of one pydicom Dataset of the file `path`."""

    def __init__(self, path: Path, dataset: Any) -> None:
        self.path = path
        self.dataset = dataset
        self._texts: dict[str, str] = {}

    def get(self, keyword: str) -> Any:
        """The element's value as pydicom has it, None where it is absent or empty."""
        with damage(self.path, f"{keyword} cannot be understood"):
            # By its tag: by their keywords, pydicom looks for absent elements several times as long.
            element = self.dataset.get(_tag(keyword))
            value = None if element is None else element.value
            return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value

    def text(self, keyword: str) -> str:
        """The value as a line of printable text, "" where it is absent; several values are joined by a backslash."""
        if keyword not in self._texts:
            self._texts[keyword] = self._text(keyword)
        return self._texts[keyword]

    def _text(self, keyword: str) -> str:
        value = self.get(keyword)
        if value is None:
            return ""
        with damage(self.path, f"{keyword} cannot be understood"):
            several = not isinstance(value, str | bytes) and hasattr(value, "__iter__")
            line = "\\".join(map(str, value)) if several else str(value)
            if not line.isprintable():
                line = "".join(letter if letter.isprintable() else " " for letter in line)
            return line.strip()

    def uid(self, keyword: str) -> str:
        """A unique identifier: digits and dots alone, so that it can be quoted.

        Raises:
            VolumeError: it is absent or damaged.
        """
        value = self.text(keyword)
        if not value or len(value) > 64 or not set(value) <= set("0123456789."):
            raise VolumeError(f"{self.path}: is not DICOM, or damaged: {keyword} is no identifier; export it again")
        return value

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """`count` finite numbers, or None where the element is absent."""
        value = self.get(keyword)
        if value is None:
            return None
        try:
            parts = value.split("\\") if isinstance(value, str) else value
            numbers = tuple(map(float, parts if hasattr(parts, "__iter__") else [parts]))
        except (TypeError, ValueError, OverflowError) as error:
            raise VolumeError(f"{self.path}: {keyword} is no number; export the series again") from error
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise VolumeError(f"{self.path}: {keyword} should be {count} finite number(s); export the series again")
        return numbers

    def number(self, keyword: str, default: float | None = None) -> float | None:
        """One finite number, `default` where the element is absent."""
        numbers = self.numbers(keyword, 1)
        return default if numbers is None else numbers[0]

    def integer(self, keyword: str, default: int | None = None) -> int:
        """One whole number.

        Raises:
            VolumeError: the element is absent and there is no default, or it is no whole number.
        """
        number = self.number(keyword)
        if number is None:
            if default is None:
                raise VolumeError(f"{self.path}: {keyword} is missing; export the series again")
            return default
        if number != int(number):
            raise VolumeError(f"{self.path}: {keyword} is {number:g}, not a whole number; export the series again")
        return int(number)

    def items(self, keyword: str) -> list[Elements]:
        """The items of a sequence; none where it is absent or no sequence."""
        value = self.get(keyword)
        if value is None or isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            return []
        with damage(self.path, f"{keyword} cannot be understood"):
            return [Elements(self.path, item) for item in value if hasattr(item, "dir")]

    def item(self, keyword: str) -> Elements | None:
        """The first item of a sequence, None where there is none."""
        items = self.items(keyword)
        return items[0] if items else None
