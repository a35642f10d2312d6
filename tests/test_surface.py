"""What users import and type changes only on purpose."""

from __future__ import annotations

from difflib import unified_diff

from tests.surface import SURFACE, surface


def test_surface() -> None:
    wanted, found = (text.splitlines() for text in (SURFACE.read_text(encoding="utf-8"), surface()))
    changes = unified_diff(wanted, found, "tests/public_surface.txt", "now", lineterm="", n=1)
    assert wanted == found, "\n".join(
        ["the public surface is another; if that is meant: python -m tests.surface --write", *changes]
    )
