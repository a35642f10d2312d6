"""The table of export targets: what is refused, and --help, follow from its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dmfnet_fast.engines import DEFAULT
from dmfnet_fast.engines.kinds import OPENVINO, TENSORRT
from dmfnet_fast.engines.tensorrt import FLAVOURS
from export.command import main
from export.errors import RequestError
from export.options import BACKENDS, OPTIONS, PRECISION_FLAGS, make_request, precision_help
from export.request import Target
from export.targets import TARGETS

GIVEN: dict[str, Any] = {
    "calibrate": Path(),
    "every_block": True,
    "batch": 2,
    "plugins": True,
    "pixels": True,
    "timing_cache": Path("timings"),
    "workspace": 100,
    "no_check": True,
    "server": Path("models"),
    "gpu": "sm_89",
    "single_file": True,
}
NOTHING: dict[str, Any] = dict.fromkeys(
    (
        "source",
        "precision",
        "size",
        "least",
        "best",
        "most",
        "batch",
        "gpu",
        "timing_cache",
        "workspace",
        "calibrate",
        "server",
        "backend",
        "output",
    )
) | {"plugins": False, "pixels": False, "no_check": False, "every_block": False, "single_file": False}


def test_every_row() -> None:
    names = {option.name for option in OPTIONS}
    assert set(GIVEN) == names
    for name, target in TARGETS.items():
        assert target.name == name
        assert target.options <= names
        assert set(target.precisions) <= set(PRECISION_FLAGS)
        assert set(target.cpu_precisions) <= set(target.precisions)
        if target.kind is None:
            continue
        known = {precision for support in target.kind.support.values() for precision in support.precisions}
        # Files that no engine runs are graphs to build others from.
        assert set(target.cpu_precisions or target.precisions) <= known
        assert ("server" in target.options) == bool(target.served)
        for served in target.served:
            assert set(served.precisions) <= set(target.precisions)
            assert {"batch", "server"} <= served.options <= names
            assert BACKENDS[served.backend] is target
    assert len(BACKENDS) == sum(len(target.served) for target in TARGETS.values())
    assert [name for name, target in TARGETS.items() if target.kind is None] == ["web"]
    assert {name for name, target in TARGETS.items() if target.kind is TENSORRT} == set(FLAVOURS)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_refusals(option: Any, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option is refused, by its flag and with what takes it, unless the row has it."""
    monkeypatch.chdir(tmp_path)
    precision = option.precision if option.precision in target.precisions else None
    given = {**NOTHING, "target": target.name, "precision": precision, option.name: GIVEN[option.name]}
    if option.name in target.options:
        request = make_request(**given)
        assert str(request).startswith("source ")
        return
    with pytest.raises(RequestError) as caught:
        make_request(**given)
    takers = [name for name, row in TARGETS.items() if option.name in row.options]
    if option.precision is None:
        assert str(caught.value).startswith(f"{option.flag} is for --target ")
        assert all(name in str(caught.value) for name in takers)
    else:
        assert str(caught.value).startswith(f"{option.flag} is for {PRECISION_FLAGS[option.precision].flag}")
    assert str(caught.value).endswith(option.reason)


def test_one_row_is_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A target that is one more row: its suffix, its default precision, and the messages that name it."""
    monkeypatch.chdir(tmp_path)
    row = replace(TARGETS["onnx"], name="new", precisions=("int8",), options=frozenset({"calibrate"}), served=())
    monkeypatch.setitem(TARGETS, "new", row)
    request = make_request(**{**NOTHING, "target": "new", "calibrate": tmp_path})
    assert (request.target, request.precision, request.output.suffix) == (row, "int8", OPENVINO.suffix)
    assert precision_help("int8") == "Convolutions in 8 bits, the default for new; for onnx and new alone."
    for given, message in (
        ({"precision": "float16"}, r"^--fp16 is for --target tensorrt, tensorrt-rtx or onnx$"),
        ({"batch": 2}, r"^--batch is for --target tensorrt, tensorrt-rtx or onnx with --triton-server: "),
        ({"server": tmp_path}, r"^--triton-server is for --target tensorrt or onnx: the server runs nothing else$"),
    ):
        with pytest.raises(RequestError, match=message):
            make_request(**{**NOTHING, "target": "new", **given})


def test_help(cli: CliRunner) -> None:
    words = " ".join(cli.invoke(main, ["--help"]).stdout.split())
    for name, target in TARGETS.items():
        assert f"{name}: {target.words}" in words
    assert "float16, the default for tensorrt and tensorrt-rtx; for tensorrt, tensorrt-rtx and onnx alone." in words
    assert "float32, the default for onnx and web." in words
    assert "Convolutions in 8 bits; for onnx alone." in words
    assert f"a shipped network by its name ({DEFAULT} if none is given)" in words
