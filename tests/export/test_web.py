"""The target `web`: what is put into the page, and what is refused; `tests/web` opens it in a browser."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

import export.web
from dmfnet_fast.artifacts.onnx_metadata import is_sealed, properties
from dmfnet_fast.artifacts.parity import Parity, Reference
from dmfnet_fast.commands.view import pair_site
from dmfnet_fast.config import preset
from dmfnet_fast.engines import shipped
from dmfnet_fast.web import site
from dmfnet_fast.web.means import one_axis_at_a_time
from export.command import main
from export.errors import RequestError
from export.onnx.source import Graph
from export.options import make_request
from export.verify import Report, on_onnx_runtime
from export.web import write

NANO = shipped()["nano"].with_suffix(".onnx")
TURBO = shipped()["turbo"].with_suffix(".onnx")
TEMPLATE = "<head><!-- policy --><!-- style --></head><!-- script -->"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small page in place of the real one."""
    folder = tmp_path / "built"
    folder.mkdir()
    texts = {"index.html": TEMPLATE, "page.js": "start()", "style.css": "p {}", "ort.mjs": "ort", "worker.js": "worker"}
    for name, text in {**texts, "worker-with-runtime.js": "both", site.NOTICES: "licenses"}.items():
        (folder / name).write_text(text)
    (folder / "ort.wasm.gz").write_bytes(gzip.compress(b"runtime"))
    monkeypatch.setattr(site, "SHIPPED", folder)
    return folder


@pytest.mark.usefixtures("built")
def test_folder(cli: CliRunner, tmp_path: Path) -> None:
    page = tmp_path / "page"
    result = cli.invoke(main, ["nano", "--target", "web", "-o", str(page)])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{page}\n"
    manifest = json.loads((page / "manifest.json").read_text())
    assert manifest["network"]["name"] == "nano"
    listed = manifest["files"]
    assert {path.name for path in page.iterdir()} == {*listed, "manifest.json"}
    for name, known in listed.items():
        content = (page / name).read_bytes()
        assert known == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert (page / "network.onnx").read_bytes() == NANO.read_bytes()
    assert (page / "ort.wasm").read_bytes() == b"runtime"
    assert "worker-with-runtime.js" not in listed
    text = (page / "index.html").read_text()
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    again = cli.invoke(main, ["nano", "--target", "web", "-o", str(page)])
    assert again.exit_code == 2
    assert f"{page}: is there already" in again.stderr


@pytest.mark.usefixtures("built")
def test_one_file(cli: CliRunner, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for _ in range(2):  # a file may be written again
        result = cli.invoke(main, [str(NANO), "--target", "web", "--single-file", "-o", str(page)])
        assert result.exit_code == 0, result.output
    text = page.read_text()
    files = dict(re.findall(r'<script type="application/gzip" id="file:([^"]+)">([^<]+)</script>', text))
    content = {name: gzip.decompress(base64.b64decode(data)) for name, data in files.items()}
    assert content["worker.js"] == b"both"
    assert content["ort.wasm"] == b"runtime"
    assert content["network.onnx"] == NANO.read_bytes()
    assert json.loads(content["manifest.json"])["network"]["name"] == "nano"
    assert not any(name.endswith(".mjs") for name in files)
    script = hashlib.sha256(b"start()").digest()
    assert f"script-src 'sha256-{base64.b64encode(script).decode()}' blob: 'wasm-unsafe-eval'" in text
    assert "connect-src 'none'" in text
    assert "licenses" in text


@pytest.mark.usefixtures("built")
def test_refusals(cli: CliRunner, tmp_path: Path) -> None:
    for arguments, message in (
        (["nano", "--fp16"], "--fp16 is for --target tensorrt, tensorrt-rtx or onnx"),
        (["nano", "--single-file", "-o", str(tmp_path / "page")], "name an .html file"),
        (["nano", "-o", str(tmp_path / "none" / "page")], "does not exist"),
        (["nano", "--triton-server", str(tmp_path)], "--triton-server is for --target tensorrt or onnx"),
    ):
        result = cli.invoke(main, [*arguments, "--target", "web"])
        assert result.exit_code == 2, arguments
        assert message in result.stderr
        assert not list(tmp_path.glob("page*"))
    dry = cli.invoke(main, ["--target", "web", "--dry-run"])
    assert "writes     dmfnet-nano-page" in dry.stdout


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("tiny", False, "takes noise, which the page does not draw; export nano or turbo"),
        ("nano", True, "takes 8-bit images, and the page has its own rules: give another file"),
    ],
)
def test_what_the_page_does_not_run(name: str, pixels: bool, message: str, tmp_path: Path) -> None:
    graph = Graph(b"", "float32", preset(name).to_dict(), {}, "", (), 0.0, (), pixels)
    nothing: dict[str, Any] = dict.fromkeys(
        ("size", "least", "best", "most", "batch", "gpu", "timing_cache", "calibrate", "server", "backend", "workspace")
    )
    flags: dict[str, Any] = dict.fromkeys(("plugins", "pixels", "every_block", "single_file", "no_check"), False)
    request = make_request(None, "web", None, output=tmp_path / "page", **nothing, **flags)
    with pytest.raises(RequestError, match=message):
        write(request, graph, tmp_path, lambda _: nullcontext(print), print)
    assert not list(tmp_path.iterdir())


def test_means_of_one_axis_at_a_time() -> None:
    """No mean is over a whole plane, whose sum would lose digits, and the graph is whole otherwise."""
    shipped_turbo = TURBO.read_bytes()
    content = one_axis_at_a_time(shipped_turbo)
    assert is_sealed(content)
    assert one_axis_at_a_time(content) is content
    model, before = onnx.ModelProto.FromString(content), onnx.ModelProto.FromString(shipped_turbo)
    onnx.checker.check_model(model, full_check=True)
    # By another reader of the format: ONNX's own.
    axes = {
        node.output[0]: list(attribute.ints)
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Constant" and attribute.name == "value_ints"
    } | {
        tensor.name: onnx.numpy_helper.to_array(tensor).ravel().tolist()
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    means = [node for node in model.graph.node if node.op_type == "ReduceMean"]
    assert len(means) > 10
    assert all(len(axes[node.input[1]]) == 1 for node in means)
    others = [[node for node in graph.node if node.op_type != "ReduceMean"] for graph in (model.graph, before.graph)]
    assert others[0] == others[1]
    assert list(model.graph.initializer)[: len(before.graph.initializer)] == list(before.graph.initializer)
    assert {**properties(content), "content_sha256": ""} == {**properties(shipped_turbo), "content_sha256": ""}


@pytest.mark.usefixtures("built")
def test_one_network_for_pages_and_the_viewer(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """dmfnet-view serves the network that dmfnet-export checks and writes."""
    checked: list[bytes] = []

    def on_the_smallest(content: bytes, precision: str, wanted: Sequence[Reference], report: Report) -> Parity:
        checked.append(content)
        return on_onnx_runtime(content, precision, [min(wanted, key=lambda one: one.a.size)], report)

    monkeypatch.setattr(export.web, "on_onnx_runtime", on_the_smallest)
    page, image = tmp_path / "page", tmp_path / "image.png"
    image.touch()
    result = cli.invoke(main, ["turbo", "--target", "web", "-o", str(page)])
    assert result.exit_code == 0, result.output
    served, _ = pair_site(image, image, "turbo")
    assert [served["network.onnx"], (page / "network.onnx").read_bytes()] == 2 * checked
    assert checked == [one_axis_at_a_time(TURBO.read_bytes())]
