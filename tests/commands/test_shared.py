"""Progress: a bar on a terminal, lines in a file. And commands that run without their scripts."""

from __future__ import annotations

import io
import runpy
import sys
import time
from pathlib import Path

import pytest

from dmfnet_fast import __version__, commands
from dmfnet_fast.commands.shared import progress


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_at_intervals(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    with progress(iter(range(9)), "fusing", 9) as items:
        for item in items:
            seen.append(item)
            seconds[0] += 4
    assert seen == list(range(9))
    assert capsys.readouterr() == ("", "fusing: 0 of 9\nfusing: 3 of 9\nfusing: 6 of 9\nfusing: 9 of 9\n")


def test_no_items(capsys: pytest.CaptureFixture[str]) -> None:
    nothing: list[int] = []
    with progress(nothing, "fusing") as items:
        assert list(items) == []
    assert capsys.readouterr().err == "fusing: 0 of 0\n"


def test_no_last_line_after_an_error(seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    def fuse() -> None:
        with progress(["first", "second", "third"], "fusing") as items:
            for item in items:
                seconds[0] += 11
                if item == "second":
                    raise ValueError(item)

    with pytest.raises(ValueError, match="second"):
        fuse()
    assert capsys.readouterr().err == "fusing: 0 of 3\nfusing: 1 of 3\n"


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(range(3), "fusing") as items:
        assert list(items) == [0, 1, 2]
    assert "fusing  [####" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


@pytest.mark.parametrize("name", ["convert", "demo", "eval", "export", "fuse", "node", "phantom", "view"])
def test_commands_run_as_modules(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m dmfnet_fast.commands.fuse` serves where scripts are not on the PATH, and never does nothing."""
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(Path(commands.__path__[0]) / f"{name}.py"), run_name="__main__")
    assert f"version {__version__}" in capsys.readouterr().out
