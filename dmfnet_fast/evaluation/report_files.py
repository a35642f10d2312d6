"""The files of a report, which replace those of an earlier one and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.errors import OutputError

# By these an earlier report is known.
MARKS = {
    "report.md": "<!-- made by dmfnet-eval -->",
    "report.json": '"made_by": "dmfnet-eval"',
    "report.html": '<meta name="generator" content="dmfnet-eval">',
}


def check_replaceable(folder: Path) -> None:
    """Raise an OutputError if writing a report would replace a file that is none."""
    for name, mark in MARKS.items():
        path = folder / name
        if path.is_file() and mark not in path.read_text(encoding="utf-8", errors="replace"):
            raise OutputError(
                f"{path}: is there already and was not made by dmfnet-eval; move it away, or choose another folder "
                "with --output"
            )


def write_reports(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write the files of a report, by name, each whole or not at all.

    Raises:
        OutputError: one cannot be written, or was made by something else.
    """
    check_replaceable(folder)
    paths = []
    for name, text in texts.items():
        assert MARKS[name] in text
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(folder / name)
    return paths
