"""Folders of pairs: the order of a and b, error messages, and memory use."""

from __future__ import annotations

import gc
import re
import shutil
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dmfnet_fast.errors import ImageError, OutOfMemoryError
from dmfnet_fast.evaluation import scores
from dmfnet_fast.evaluation.dataset import Pair, Saved, Scene, find_pairs
from dmfnet_fast.evaluation.methods import Trivial
from dmfnet_fast.evaluation.scores import evaluate
from dmfnet_fast.images.io import write_image


def _write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, np.full((64, 64), len(name), np.uint8))


@pytest.mark.parametrize(
    ("folder", "a", "b"),
    [
        ("CT-MRI", "MRI", "CT"),
        ("IR-VIS", "VIS", "IR"),
        ("GFP-PC", "PC", "GFP"),
        ("MR-MR", "A", "B"),
        ("T1-Gd-T2", "T2", "T1-Gd"),
        ("CT-T1-Gd", "T1-Gd", "CT"),
    ],
)
def test_folder_names_give_b_then_a(folder: str, a: str, b: str, tmp_path: Path) -> None:
    _write(tmp_path, f"{folder}/{a}/1.png", f"{folder}/{b}/1.png")
    (pair,), problems = find_pairs(tmp_path, ".")
    assert not problems
    assert (pair.modality, pair.kinds, str(pair)) == (folder, (a, b), f"{folder} 1")
    assert (pair.a, pair.b) == (tmp_path / folder / a / "1.png", tmp_path / folder / b / "1.png")


def test_other_folders_are_ignored(tmp_path: Path) -> None:
    _write(tmp_path, "s/PET-MRI/PET/2.png", "s/PET-MRI/MRI/2.png", "s/CT-MRI/CT/1.png", "s/CT-MRI/MRI/1.png")
    _write(tmp_path, "s/notes/x.png", "s/.hidden-MRI/x.png", "s/CT-MRI/MRI/7.png", "s/file-MRI.png", "s/-MRI/x.png")
    pairs, problems = find_pairs(tmp_path, "s")
    assert [str(pair) for pair in pairs] == ["CT-MRI 1", "PET-MRI 2"]
    assert problems == [f"{tmp_path / 's/CT-MRI/MRI/7.png'}: has no partner in {tmp_path / 's/CT-MRI/CT'}"]
    assert [str(pair) for pair in find_pairs(tmp_path, "s", ["PET"])[0]] == ["PET-MRI 2"]
    assert find_pairs(tmp_path, "s", ["PET"])[1] == []


@pytest.mark.parametrize(
    ("existing", "requested", "message"),
    [
        ("IR-VIS/IR/1.png", (), "IR-VIS: holds no folders IR and VIS; pairs are in folders named B-A"),
        ("MR-MR/MR/1.png", (), "MR-MR: holds no folders B and A; pairs are in folders named B-A"),
        ("notes/1.png", (), "holds no pairs; pairs are in folders named B-A"),
        ("notes/1.png", ("CT",), "holds no CT; there is no folder of pairs"),
        ("CT-MRI/CT/1.png", ("MRI",), "holds no MRI; there is CT-MRI"),
    ],
)
def test_invalid_folders(existing: str, requested: Sequence[str], message: str, tmp_path: Path) -> None:
    _write(tmp_path, existing)
    with pytest.raises(ImageError, match=re.escape(message)):
        find_pairs(tmp_path, ".", requested)


def test_invalid_folders_that_are_not_requested_are_ignored(tmp_path: Path) -> None:
    _write(tmp_path, "old-stuff/1.png", "CT-MRI/CT/1.png", "CT-MRI/MRI/1.png")
    with pytest.raises(ImageError, match="or select other folders with --modality"):
        find_pairs(tmp_path, ".")
    assert len(find_pairs(tmp_path, ".", ["CT-MRI"])[0]) == 1


def test_read_with_the_stated_range(tmp_path: Path) -> None:
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", deep)
    pair = Pair("CT-MRI", ("MRI", "CT"), "1", tmp_path / "a.png", tmp_path / "b.png", (0, 4095), (1000, 2000))
    scene = pair.read()
    assert scene.values == (1000, 2000)
    np.testing.assert_array_equal(scene.grays[0], np.rint(deep * (255 / 4095)))
    np.testing.assert_array_equal(scene.grays[1], np.rint((deep.clip(1000, 2000) - 1000.0) * 0.255))


class _SceneCounter(Trivial):
    """Counts the scenes that are alive at the same time, through weak references."""

    def __init__(self) -> None:
        super().__init__("maximum")
        self.scenes: list[weakref.ref[Scene]] = []
        self.most = 0

    def fuse(self, scene: Scene) -> Saved:
        self.scenes.append(weakref.ref(scene))
        gc.collect()
        self.most = max(self.most, sum(reference() is not None for reference in self.scenes))
        return super().fuse(scene)


class _LazyExecutor(Executor):
    """Runs a function only when its result is requested, like slow workers, and counts the waiting functions."""

    def __init__(self) -> None:
        self.waiting = self.most = 0

    def submit(self, function: Any, /, *args: Any, **_: Any) -> Any:
        self.waiting += 1
        self.most = max(self.most, self.waiting)

        def result() -> Any:
            self.waiting -= 1
            return function(*args)

        return SimpleNamespace(result=result)


def test_queue_for_slow_workers_is_bounded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = _LazyExecutor()
    monkeypatch.setattr(scores, "_pool", lambda _: nullcontext(executor))
    pairs, _ = find_pairs(data, "test")
    evaluation = evaluate(pairs, [Trivial("maximum")], "maximum", 2, lambda items: items)
    assert [scored.pair for scored in evaluation.scored] == pairs
    assert (executor.most, executor.waiting) == (5, 0), "two queued per worker, plus the one being added"


def test_a_worker_that_is_killed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def result() -> Any:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    killed = SimpleNamespace(submit=lambda *_: SimpleNamespace(result=result))
    monkeypatch.setattr(scores, "_pool", lambda _: nullcontext(killed))
    pairs, _ = find_pairs(data, "test")
    with pytest.raises(OutOfMemoryError, match=r"a process that computes metrics was killed, .*; use fewer --workers"):
        evaluate(pairs, [Trivial("maximum")], "maximum", 2, lambda items: items)


def test_images_are_not_kept(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "test", tmp_path / "test")
    method = _SceneCounter()
    pairs, _ = find_pairs(tmp_path, "test")
    evaluation = evaluate(pairs, [method], "maximum", 1, lambda items: items)
    assert len(evaluation.scored) == len(method.scenes) == 9
    assert [scored.pair for scored in evaluation.scored] == pairs
    assert method.most <= 2, "the current scene and the previous one"
