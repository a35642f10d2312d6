"""The files of a report. They replace those of an earlier report, but no other files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.errors import OutputError
from dmfnet_fast.html_page import generator

COMMAND = "dmfnet-eval"
# Marks in the files by which an earlier report is recognized.
MARKS = {
    "report.md": f"<!-- made by {COMMAND} -->",
    "report.json": f'"made_by": "{COMMAND}"',
    "report.html": generator(COMMAND),
}


def check_replaceable(folder: Path) -> None:
    """Raise an OutputError if writing a report would replace a file that is not part of an earlier report."""
    for name, mark in MARKS.items():
        path = folder / name
        if path.is_file() and mark not in path.read_text(encoding="utf-8", errors="replace"):
            raise OutputError(
                f"{path}: already exists and was not made by dmfnet-eval; move it away, or choose another folder with "
                "--output"
            )


def write_reports(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write the files of a report, each completely or not at all, and return their paths.

    Args:
        folder: where to write.
        texts: contents of the files, by name.

    Raises:
        OutputError: a file cannot be written, or already exists and is not part of an earlier report.
    """
    check_replaceable(folder)
    paths = []
    for name, text in texts.items():
        assert MARKS[name] in text
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(folder / name)
    return paths
