"""The rules in JavaScript give what those in Python do."""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dmfnet_fast.errors import DMFNetWarning
from dmfnet_fast.images.color import Canvas, is_color, value_range
from dmfnet_fast.images.padding import pad
from dmfnet_fast.images.rules import Rules
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.web.building import SOURCES

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")


@dataclass(frozen=True)
class Case:
    """A pair, the ranges that are stated, the rules, and a network's output."""

    a: NDArray[Any]
    b: NDArray[Any]
    fused: NDArray[np.float32]
    stated: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None)
    rules: Rules = field(default_factory=Rules)


def _cases() -> list[Case]:
    random = np.random.default_rng(7)

    def noise(shape: tuple[int, ...], dtype: str, top: float = 255) -> NDArray[Any]:
        return (random.random(shape) * top).astype(dtype)

    def output(height: int, width: int) -> NDArray[np.float32]:
        return random.uniform(-1.1, 1.1, (height, width)).astype(np.float32)

    head = make_phantom(3, 64)
    cases = [Case(head.mri, other, output(64, 64)) for other in (head.ct, head.pet, head.other("SPECT"))]
    for kept, invention in ((0.0, False), (1.0, False), (0.75, True), (0.31, True)):
        cases.append(Case(head.mri, head.pet, output(64, 64), rules=Rules(kept, invention)))
    sizes = ((65, 70), (64, 64), (79, 97))
    for height, width in sizes:
        cases.append(Case(noise((height, width), "uint8"), noise((height, width, 3), "uint8"), output(height, width)))
        deep = noise((height, width, 3), "uint16", 65535)
        cases.append(Case(noise((height, width), "uint16", 4095), deep, output(height, width)))
        cases.append(Case(noise((height, width), "uint8"), deep[..., 0], output(height, width), (None, (100, 40000.5))))
        narrow = (deep, output(height, width), (None, (3.7, 40000.2)))
        cases.append(Case(noise((height, width, 3), "uint8"), *narrow))
        floats = noise((height, width), "float32", 7)
        cases.append(Case(floats, noise((height, width), "float32", 3), output(height, width), ((0, 7), (0.5, 2.5))))
        cases.append(Case(floats, noise((height, width, 3), "uint8"), output(height, width), ((0, 7), None)))
    # A hot pixel in 12-bit data, and 16-bit data that use a small part of the range.
    hot = noise((64, 64), "uint16", 4095)
    hot[10, 10] = 65535
    cases.append(Case(hot, (60000 + noise((64, 64), "uint16", 900)).astype("uint16"), output(64, 64)))
    return cases


def _computed(cases: list[Case], folder: Path) -> list[dict[str, Any]]:
    described = []
    for n, case in enumerate(cases):
        for name, array in (("a", case.a), ("b", case.b), ("fused", case.fused)):
            (folder / f"{n}-{name}").write_bytes(np.ascontiguousarray(array).tobytes())
        images = [
            {"height": i.shape[0], "width": i.shape[1], "channels": 3 if i.ndim == 3 else 1, "type": i.dtype.name}
            for i in (case.a, case.b)
        ]
        rules = {"keptChroma": case.rules.kept_chroma, "invention": case.rules.invention}
        described.append({"images": images, "stated": case.stated, "rules": rules})
    (folder / "cases.json").write_text(json.dumps(described))
    script = Path(__file__).with_name("canvas.mjs")
    command = ["node", str(script), str(folder), str(SOURCES / "src")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_equal_to_python(tmp_path: Path) -> None:
    cases = _cases()
    colors = set()
    for n, (case, said) in enumerate(zip(cases, _computed(cases, tmp_path), strict=True)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DMFNetWarning)
            ranges = [value_range(i, s, "x") for i, s in zip((case.a, case.b), case.stated, strict=True)]
        assert said["ranges"] == [list(pair) for pair in ranges]
        assert said["warnings"] == len(caught)
        assert said["color"] == [is_color(case.a), is_color(case.b)]
        colors.add(said["color"][1])
        canvas = Canvas(case.a, case.b, ranges[0], ranges[1], case.rules)

        def read(name: str, dtype: Any = np.float32, n: int = n) -> NDArray[Any]:
            return np.frombuffer((tmp_path / f"{n}-{name}").read_bytes(), dtype)

        np.testing.assert_array_equal(read("padded"), pad(canvas.a)[0].ravel())
        np.testing.assert_array_equal(read("cropped"), canvas.a.ravel())
        np.testing.assert_array_equal(read("luminance-b"), canvas.b.ravel())
        wanted = canvas.finish(case.fused)
        finished = read("finished", case.b.dtype)
        if case.b.dtype.kind == "u":
            for end in range(2):
                np.testing.assert_array_equal(read(f"interval-{end}"), canvas.interval[end].ravel())
            np.testing.assert_array_equal(finished, wanted.ravel())
        else:
            for end in range(2):
                np.testing.assert_allclose(read(f"interval-{end}"), canvas.interval[end].ravel(), atol=2e-7)
            np.testing.assert_allclose(finished, wanted.ravel(), atol=1e-6)
    assert colors == {True, False}
