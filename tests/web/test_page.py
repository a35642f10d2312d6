"""The page in headless Chromium: equal to Python, silent on the network, clear about errors."""

from __future__ import annotations

import functools
import http.server
import re
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from dmfnet_fast import Fuser
from dmfnet_fast.artifacts.network_inputs import network_inputs
from dmfnet_fast.images.color import Canvas, value_range
from dmfnet_fast.images.io import read_image, write_image
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.web import site
from dmfnet_fast.web.server import Server
from export.command import main as export
from tests.synthetic_weights import GOLDEN
from tests.web.conftest import Browse, network


@pytest.fixture(scope="module")
def float32() -> Fuser:
    return Fuser(precision="float32")


def _luminances(fuser: Fuser, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    canvas = Canvas(a, b, value_range(a, None, "a"), value_range(b, None, "b"))
    inputs, inside = network_inputs(fuser._engine.interface, [canvas])
    result = fuser.run(inputs["a"], inputs["b"], interval=inputs["interval"])[0, 0][inside]
    return np.asarray(result, np.float32)


def _only_its_own(found: dict[str, Any], url: str) -> None:
    """Nothing but files beside the page was asked for, and the page complained of nothing."""
    others = [one for one in found["asked"] if not one.startswith((url, "blob:", "data:"))]
    assert not others
    assert not found["complaints"]


def _pairs() -> list[tuple[NDArray[Any], NDArray[Any]]]:
    head = make_phantom(4, 128)
    with np.load(GOLDEN / "golden_64x96.npz") as golden:
        inputs = [np.rint((golden[name] + 1) * 127.5).clip(0, 255).astype(np.uint8) for name in ("a", "b")]
    random = np.random.default_rng(1)
    lines = np.zeros((64, 80), np.uint8)
    lines[::2] = 255
    deep = (random.random((70, 93, 3)) * 65535).astype(np.uint16)
    return [
        (head.mri, head.pet),
        (head.mri, head.ct),
        (inputs[0], inputs[1]),
        (lines, 255 - lines),
        ((random.random((70, 93)) * 65535).astype(np.uint16), deep),
    ]


SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]


@pytest.mark.parametrize(("provider", "limit"), [("wasm", 1e-5), ("webgpu", 1e-3)])
def test_luminances(provider: str, limit: float, page: str, browse: Browse, float32: Fuser, tmp_path: Path) -> None:
    """The network in a browser is within 1e-5 of Python's on WASM, and within 1e-3 on WebGPU."""
    pairs = _pairs()
    if provider == "webgpu":  # a software adapter takes its time
        head = make_phantom(4, 64)
        pairs = [(head.mri, head.pet)]
    files = []
    for n, images in enumerate(pairs):
        files.append([tmp_path / f"{n}{side}.png" for side in "ab"])
        for path, image in zip(files[-1], images, strict=True):
            write_image(path, image)
    adapter = SOFTWARE_GPU if provider == "webgpu" else []
    found = browse("luminances", page, pairs=files, provider=provider, save=tmp_path / "found", arguments=adapter)
    assert found["provider"] == provider
    if provider == "wasm":
        assert found["threads"] > 1
    wanted = np.concatenate([_luminances(float32, a, b).ravel() for a, b in pairs])
    result = np.frombuffer((tmp_path / "found").read_bytes(), np.float32)
    assert np.abs(result - wanted).max() <= limit
    _only_its_own(found, page)


# What a page reads of a GPU's memory is wrong.
WRONG_GPU = """
const right = GPUBuffer.prototype.getMappedRange;
GPUBuffer.prototype.getMappedRange = function (...range) {
  const memory = right.apply(this, range);
  const numbers = new Float32Array(memory);
  if (this.usage & GPUBufferUsage.MAP_READ) numbers.forEach((value, n) => (numbers[n] = value + 0.01));
  return memory;
};
"""


def test_a_gpu_that_computes_wrongly(page: str, browse: Browse, float32: Fuser, tmp_path: Path) -> None:
    """It is found out before anything is fused on it, the page says so, and the CPU's result is saved."""
    del page
    files = dict(site.page_files(network()))
    files["worker.js"] = WRONG_GPU.encode() + files["worker.js"]
    head = make_phantom(4, 64)
    pair = {"a": tmp_path / "mri.png", "b": tmp_path / "ct.png"}
    write_image(pair["a"], head.mri)
    write_image(pair["b"], head.ct)
    with Server(files).in_background() as url:
        found = browse("gpu", url, **pair, save=tmp_path / "saved.png", arguments=SOFTWARE_GPU)
    assert re.fullmatch(
        r"The GPU \(WebGPU\) is not used: it computes a test image wrongly, by 0\.\d+ where 0\.001 is allowed\. "
        r"The CPU computes instead\.",
        found["warnings"],
    )
    assert found["status"].startswith("Runs on the CPU (WASM, ")
    difference = read_image(tmp_path / "saved.png").astype(int) - float32.fuse(head.mri, head.ct)
    assert np.abs(difference).max() <= 1
    _only_its_own(found, url)


@pytest.fixture
def color_pair(tmp_path: Path) -> dict[str, Path]:
    head = make_phantom(5, 128)
    files = {"a": tmp_path / "mri.png", "b": tmp_path / "pet.png"}
    write_image(files["a"], head.mri)
    write_image(files["b"], head.pet)
    return files


def test_pair(page: str, browse: Browse, float32: Fuser, color_pair: dict[str, Path], tmp_path: Path) -> None:
    """Two files are fused, shown in all ways and saved as Python fuses them, with the usual rules and without."""
    found = browse("pair", page, **color_pair, save=tmp_path / "saved.png", saveFree=tmp_path / "free.png")
    assert found["status"].startswith("Runs on the CPU (WASM, ")
    assert found["warnings"] == ""
    assert found["name"] == "pet-fused.png"
    a, b = (read_image(path) for path in color_pair.values())
    saved = read_image(tmp_path / "saved.png").astype(int)
    assert np.abs(saved - float32.fuse(a, b)).max() <= 1
    assert found["views"] == {"overlay": ["two"], "swipe": ["two"], "fused": ["fused"]}
    assert found["swipe"]["left"] == found["overlay"]["above"]
    assert found["swipe"]["right"] == found["overlay"]["below"]
    assert found["swipe"]["left"] != found["swipe"]["right"]
    assert found["divider"] == "80"
    assert len(found["crosshairs"]) == 3
    assert len(set(found["crosshairs"])) == 1
    assert "MRI " in found["readout"]
    assert "fused " in found["readout"]
    assert found["windowed"]
    free = read_image(tmp_path / "free.png").astype(int)
    with Fuser(precision="float32", keep_chroma=0, allow_invention=True) as fuser:
        assert np.abs(free - fuser.fuse(a, b)).max() <= 1
    assert np.abs(free - saved).max() > 1
    _only_its_own(found, page)


def test_formats(page: str, browse: Browse, float32: Fuser, tmp_path: Path) -> None:
    """Images of 16 bits, TIFF, JPEG and BMP are read as Python reads them."""
    head = make_phantom(6, 64)
    kinds: dict[str, NDArray[Any]] = {
        "deep.png": head.ct.astype(np.uint16) * 257,
        "deep.tif": head.ct.astype(np.uint16) * 257,
    }
    kinds |= {
        "color.tif": head.pet,
        "gray.tif": head.ct,
        "color.bmp": head.pet,
        "gray.jpg": head.ct,
        "color.jpg": head.pet,
    }
    write_image(tmp_path / "mri.png", head.mri)
    files = [(tmp_path / name, tmp_path / f"{name}-saved.png") for name in kinds]
    for (path, _), image in zip(files, kinds.values(), strict=True):
        write_image(path, image)
    _only_its_own(browse("fused", page, a=tmp_path / "mri.png", files=files), page)
    for path, saved in files:
        name, wanted, result = path.name, float32.fuse(head.mri, read_image(path)), read_image(saved)
        assert result.dtype == wanted.dtype, name
        assert result.shape == wanted.shape, name
        step = 257 if wanted.dtype == np.uint16 else 1
        # Browsers and Pillow decode JPEG by their own arithmetic.
        assert np.abs(result.astype(int) - wanted).max() <= step * (3 if name == "color.jpg" else 1), name


def test_refusals(page: str, browse: Browse, color_pair: dict[str, Path], tmp_path: Path) -> None:
    """What cannot be used is named, with what to do."""
    small, damaged, text = tmp_path / "small.png", tmp_path / "damaged.png", tmp_path / "notes.txt"
    other, nifti, packed = tmp_path / "other.png", tmp_path / "bad.nii", tmp_path / "bad.nii.gz"
    write_image(small, make_phantom(1, 64).pet[:60])
    write_image(other, make_phantom(1, 64).pet)
    damaged.write_bytes(other.read_bytes()[:900])
    text.write_text("no image")
    nifti.write_bytes(b"\0" * 1000)
    packed.write_bytes(b"\x1f\x8b" + b"\0" * 50)
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 16, 2, 0, 0, 0))
    empty = tmp_path / "empty.png"
    empty.touch()
    expected = {
        small: "small.png: is 64x60; the smallest size is 64x64",
        damaged: "damaged.png: is truncated or damaged",
        text: "notes.txt: is not an image that can be read; use PNG, JPEG, TIFF, BMP, NIfTI or DICOM",
        other: "mri.png is 128x128, other.png is 64x64: register them to one size first",
        nifti: "bad.nii: is not NIfTI, or its header is damaged",
        packed: "bad.nii.gz: is truncated or damaged",
        empty: "empty.png: is empty (0 bytes)",
        large: "large.png: is 60000x60000, which is too large for this page",
    }
    found = browse("refusals", page, a=color_pair["a"], b=[[path] for path in expected])
    for said, wanted in zip(found["said"], expected.values(), strict=True):
        assert said.startswith(wanted)
    _only_its_own(found, page)


def test_the_file_chosen_last_counts(page: str, browse: Browse, color_pair: dict[str, Path], tmp_path: Path) -> None:
    """However long another one, chosen before, takes to be read."""
    slow = tmp_path / "slow.png"
    slow.write_bytes(color_pair["a"].read_bytes())
    found = browse("overtaken", page, **color_pair, slow=slow)
    assert found["name"] == "pet.png - 128 x 128"
    assert not found["error"]
    _only_its_own(found, page)


def test_static_folder_and_one_file(tools: Path, browse: Browse, cli: CliRunner, tmp_path: Path) -> None:
    """What dmfnet-export writes works from any server and from a disk, on one thread."""
    del tools
    folder, file = tmp_path / "page", tmp_path / "page.html"
    for arguments in (["-o", str(folder)], ["--single-file", "-o", str(file)]):
        result = cli.invoke(export, ["nano", "--target", "web", *arguments])
        assert result.exit_code == 0, result.output
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        found = browse("example", url)
        server.shutdown()
        thread.join()
    assert found["status"].startswith("Runs on the CPU (WASM, 1 thread): network ")
    assert found["research"]
    _only_its_own(found, url)
    found = browse("example", file.as_uri())
    assert found["status"].startswith("Runs on the CPU (WASM, 1 thread): network ")
    _only_its_own(found, file.as_uri())
