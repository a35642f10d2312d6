"""Formatting of lists and tables for messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def alternatives(words: Iterable[str], conjunction: str = "or") -> str:
    """Join words into a list such as "a, b or c". There must be at least one."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def with_article(words: str) -> str:
    """Prefix "a" or "an", chosen by the first letter after any dot: "an .onnx file"."""
    return f"{'an' if words.lstrip('.')[0].lower() in 'aeiou' else 'a'} {words}"


def aligned(rows: Mapping[str, Any]) -> Iterator[str]:
    """Lines of labels and values with the values aligned; lists and dictionaries are written as JSON."""
    width = max(map(len, rows))
    for label, value in rows.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        yield f"{label:{width}}  {text}"
