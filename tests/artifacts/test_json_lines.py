"""Files of JSON objects that runs add to."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dmfnet_fast.artifacts.json_lines import JsonLines
from dmfnet_fast.errors import OutputError


def test_lines_that_were_cut_off_spoil_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    assert JsonLines(path).read() == []
    JsonLines(path).append({"n": 1})
    with path.open("ab") as file:
        file.write(b'[1, 2]\n{"n": 2, "text": "\xff')
    assert JsonLines(path).read() == [{"n": 1}]
    JsonLines(path).append({"n": 3})
    assert JsonLines(path).read() == [{"n": 1}, {"n": 3}]
    JsonLines(path).restart({"n": 4})
    assert JsonLines(path).read() == [{"n": 4}]
    assert json.loads(path.read_text()) == {"n": 4}


def test_threads(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "file.jsonl")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: file.append({"n": n, "text": "x" * 5000}), range(40)))
    assert sorted(entry["n"] for entry in file.read()) == list(range(40))


def test_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"folder: cannot be read and written: Is a directory"):
        JsonLines(tmp_path / "folder").read()
    with pytest.raises(OutputError, match=r"file: cannot be written: No such file or directory"):
        JsonLines(tmp_path / "none" / "file").append({})
    with pytest.raises(OutputError, match=r"the folder .* does not exist"):
        JsonLines(tmp_path / "none" / "file").restart({})
