"""Lists and tables in the words of messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def alternatives(words: Iterable[str], conjunction: str = "or") -> str:
    """Of the words a, b and c: "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def with_article(words: str) -> str:
    """The words after "a" or "an", by their first letter: "an .onnx file"."""
    return f"{'an' if words.lstrip('.')[0].lower() in 'aeiou' else 'a'} {words}"


def aligned(rows: Mapping[str, Any]) -> Iterator[str]:
    """Lines of labels and values, the values below each other; lists and dictionaries as JSON."""
    width = max(map(len, rows))
    for label, value in rows.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        yield f"{label:{width}}  {text}"
