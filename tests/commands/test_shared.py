"""Progress: a bar on a terminal, lines in a file. And commands that run without their scripts."""

from __future__ import annotations

import io
import os
import runpy
import sys
import time
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dmfnet_fast import DMFNetError, Fuser, __version__, commands
from dmfnet_fast.commands.shared import command, progress, resumable
from dmfnet_fast.commands.view import pair_site
from dmfnet_fast.model.weights import read_metadata
from tests.surface import COMMANDS


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


def test_unreadable_files_are_no_wrong_usage() -> None:
    """click would check for itself that they can be read, and print how the command is used."""
    parameters = [one for module in COMMANDS.values() for one in import_module(module).main.params]
    paths = [one.type for one in parameters if isinstance(one.type, click.Path)]
    assert len(paths) > 25
    assert not any(path.readable or path.exists for path in paths)


def test_files_without_permission(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that begins with the file, whatever finds out."""

    @command()
    def denied() -> None:
        raise PermissionError(13, "Permission denied", "x.png")

    assert cli.invoke(denied).stderr == "error: x.png: Permission denied\n"
    monkeypatch.setattr(os, "access", lambda *_: False)
    for suffix in (".onnx", ".safetensors", ".png"):
        (tmp_path / f"x{suffix}").touch()
    for refused in (
        lambda: Fuser(tmp_path / "x.onnx"),
        lambda: read_metadata(tmp_path / "x.safetensors"),
        lambda: pair_site(tmp_path / "x.png", tmp_path / "x.png", "nano"),
    ):
        with pytest.raises(DMFNetError, match=r"x\.\w+: cannot be read: permission denied"):
            refused()


@pytest.mark.parametrize(("overwrite", "how"), [(False, "command"), (True, "command without --overwrite")])
def test_interrupted(cli: CliRunner, overwrite: bool, how: str) -> None:
    @command()
    def interrupted() -> None:
        with resumable(overwrite):
            raise KeyboardInterrupt

    result = cli.invoke(interrupted)
    assert result.exit_code == 1
    assert result.stderr == f"\ninterrupted: what is done is kept; repeat the {how} to go on\n\nAborted!\n"


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(range(3), "fusing") as items:
        assert list(items) == [0, 1, 2]
    assert "fusing  [####" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


@pytest.mark.parametrize("name", ["convert", "demo", "eval", "export", "fuse", "node", "phantom", "time", "view"])
def test_commands_run_as_modules(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m dmfnet_fast.commands.fuse` serves where scripts are not on the PATH, and never does nothing."""
    monkeypatch.setattr(sys, "argv", [name, "--version"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(Path(commands.__path__[0]) / f"{name}.py"), run_name="__main__")
    assert f"version {__version__}" in capsys.readouterr().out
