"""`dmfnet-view`: what it serves, to whom, and what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from dmfnet_fast.commands import view
from dmfnet_fast.commands.fuse import main as fuse
from dmfnet_fast.commands.view import main, pair_site, result_site
from dmfnet_fast.engines import shipped
from dmfnet_fast.errors import EngineError, ImageError, OutputError
from dmfnet_fast.images.io import write_image
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.volumes.phantom import make_head, write_head, write_nifti
from dmfnet_fast.web import building, server, site
from dmfnet_fast.web.server import Server
from tests.web.conftest import Browse


def _answer(url: str, path: str, method: str = "GET") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request(method, path)
    return connection.getresponse()


def test_server(tmp_path: Path) -> None:
    """Files are served under the secret alone, with the headers that isolate the page."""
    file = tmp_path / "scan.png"
    file.write_bytes(b"content")
    gone = tmp_path / "gone.png"
    with Server({"index.html": b"page", "data/1": file, "data/2": gone, "a.wasm": b"\0"}).in_background() as url:
        assert urlsplit(url).hostname == "127.0.0.1"
        secret = urlsplit(url).path
        assert len(secret) > 30
        found = _answer(url, secret)
        assert (found.status, found.read()) == (200, b"page")
        assert found.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert found.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert found.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "Content-Security-Policy" not in found.headers
        data = _answer(url, f"{secret}data/1")
        assert data.read() == b"content"
        assert data.headers["Content-Security-Policy"].startswith("default-src 'none'")
        head = _answer(url, f"{secret}data/1", "HEAD")
        assert (head.headers["Content-Length"], head.read()) == ("7", b"")
        assert _answer(url, f"{secret}a.wasm").headers["Content-Type"] == "application/wasm"
        outside = ("/", "/index.html", "/data/1", f"{secret[:-2]}/data/1", f"{secret}data/2", f"{secret}../{file.name}")
        for path in (*outside, f"{secret}data", secret[:-1], "/%ff"):
            assert _answer(url, path).status == 404, path
        assert _answer(url, secret, "POST").status == 501
    with (server := Server({"index.html": b"page"})).in_background() as url:
        once = urlsplit(server.once("#open=it")).path
        assert urlsplit(url).path not in once
        assert _answer(url, once, "HEAD").status == 404  # and it is still good
        found = _answer(url, once)
        assert (found.status, found.headers["Location"]) == (303, f"{urlsplit(url).path}#open=it")
        assert _answer(url, once).status == 404
    with Server({"index.html": b"page"}, isolated=False).in_background() as url:
        assert "Cross-Origin-Embedder-Policy" not in _answer(url, urlsplit(url).path).headers
    with Server({}).in_background() as one, Server({}).in_background() as other:
        assert urlsplit(one).path != urlsplit(other).path


def test_addresses_that_cannot_be_used() -> None:
    with (
        Server({}).in_background() as url,
        pytest.raises(OutputError, match=r"^127\.0\.0\.1 port \d+: cannot be listened on: "),
    ):
        Server({}, port=urlsplit(url).port or 0)
    for address in ("192.0.2.1", "no..name"):
        with pytest.raises(OutputError, match=rf"^{re.escape(address)} port 0: cannot be listened on: "):
            Server({}, address)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A page that is not the real one, for tests that do not open it."""
    folder = tmp_path / "built"
    folder.mkdir()
    for name in ("index.html", "worker-with-runtime.js"):
        (folder / name).write_text("<!-- policy -->")
    monkeypatch.setattr(site, "SHIPPED", folder)


@pytest.mark.usefixtures("built")
def test_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "MR" / "inner"
    folder.mkdir(parents=True)
    for name in ("2.dcm", "1.dcm"):
        (folder / name).write_bytes(name.encode())
    image = tmp_path / "pet.png"
    image.write_bytes(b"image")
    files, place = pair_site(tmp_path / "MR", image, "nano")
    assert place == "#open=given.json"
    listed = json.loads(bytes(files["given.json"]))
    assert [one["name"] for one in listed["a"]] == ["1.dcm", "2.dcm"]
    assert files[listed["b"][0]["path"]] == image
    assert "network.onnx" in files
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(view, "MOST_FILES", 1)
        with pytest.raises(ImageError, match="MR: holds more than 1 files; give the folder of one series"):
            pair_site(tmp_path / "MR", image, "nano")
    with monkeypatch.context() as patch:
        patch.setattr(view, "MOST_BYTES", 9)
        with pytest.raises(ImageError, match="more than the page takes; give one file or one series"):
            pair_site(tmp_path / "MR", image, "nano")
    for path, message in ((tmp_path / "none", "no such file or folder"), (tmp_path / "empty", "is an empty folder")):
        with pytest.raises(ImageError, match=message):
            pair_site(path, image, "nano")


@pytest.mark.usefixtures("built")
def test_refusals(cli: CliRunner, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(b"image")
    for arguments, message in (
        ([], "give A and B, or --results"),
        ([str(image)], "give A and B, or --results"),
        ([str(image), str(image), "--results", str(tmp_path)], "not both"),
        ([str(image), str(image), "--engine", "other.safetensors"], "the page runs .onnx files"),
        ([str(image), str(image), "--engine", "none.onnx"], "none.onnx: cannot be read"),
        ([str(image), str(image), "--engine", str(image.rename(tmp_path / "image.onnx"))], "is not a readable ONNX"),
        (["--results", str(tmp_path)], "holds no report.json, which dmfnet-fuse writes with a fused volume"),
        (["--results", str(tmp_path / "none")], "is no folder of results"),
    ):
        if not image.exists():
            image.write_bytes(b"image")
        result = cli.invoke(main, arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr, arguments
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"made_by": "dmfnet-fuse", "out', "is damaged, or no report at all (its text is not JSON); give the folder"),
        (b"\xff\xfe\0", "is damaged, or no report at all (its text is not JSON); give the folder"),
        pytest.param(b"[" * 100_000, "is damaged, or no report at all (its text is not JSON); give", id="deep"),
        (b"{}", "was not written by dmfnet-fuse, and holds no fused volume; give the folder"),
        (b"[1]", "was not written by dmfnet-fuse, and holds no fused volume; give the folder"),
        (b'{"made_by": "dmfnet-eval"}', "is a report of dmfnet-eval, and holds no fused volume; give the folder"),
        (b'{"made_by": "dmfnet-fuse"}', "names no format of the fused volume, so it is damaged or of another version"),
        (b'{"made_by": "dmfnet-fuse", "output": {"format": []}}', "names no format of the fused volume, so it is"),
        (b'{"made_by": "dmfnet-fuse", "output": {"format": "mha"}}', "names the format 'mha' of the fused volume, so"),
        (b'{"made_by": "dmfnet-fuse", "output": {"format": "png"}}', "the fused volume, png, is not beside it; give"),
    ],
)
@pytest.mark.usefixtures("built")
def test_reports_that_are_none(content: bytes, message: str, cli: CliRunner, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_bytes(content)
    result = cli.invoke(main, ["--results", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {report}: {message}")
    assert result.stderr.count("\n") == 1


def test_a_changed_network_is_refused() -> None:
    content = shipped()["nano"].with_suffix(".onnx").read_bytes()
    changed = content[:-1] + (b"1" if content.endswith(b"0") else b"0")
    with pytest.raises(EngineError, match=r"^n\.onnx: has changed since it was exported, or is damaged"):
        site.Network.of(changed, "nano", "n.onnx")


@pytest.mark.usefixtures("built")
def test_other_addresses_are_warned_of(cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Server) -> None:
        raise KeyboardInterrupt

    opened: list[str] = []
    monkeypatch.setattr(Server, "serve", interrupted)
    monkeypatch.setattr(webbrowser, "open", opened.append)
    image = tmp_path / "image.png"
    image.write_bytes(b"image")
    for address, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        result = cli.invoke(main, [str(image), str(image), "--no-browser", "--address", address])
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("http://127.0.0.1:")
        assert ("other computers can see these files" in result.stderr) == warned
    assert not opened
    # Nobody can open 0.0.0.0: an address for this computer and those for others are printed.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", (ip, 0)) for ip in ("127.0.1.1", "192.0.2.7")])
    for address in ("0.0.0.0", "0", ""):
        result = cli.invoke(main, [str(image), str(image), "--address", address])
        hosts = [urlsplit(line).hostname for line in result.stdout.splitlines()]
        assert hosts[0] == urlsplit(opened.pop()).hostname == "127.0.0.1"
        assert "192.0.2.7" in hosts
        assert not {"0.0.0.0", "127.0.1.1"} & set(hosts)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    monkeypatch.setattr(socket, "gethostname", lambda: "workstation")
    monkeypatch.setattr(server, "_SOMEWHERE", {socket.AF_INET: "127.0.0.1"})  # no way to others
    result = cli.invoke(main, [str(image), str(image), "--no-browser", "--address", "0.0.0.0"])
    assert [urlsplit(line).hostname for line in result.stdout.splitlines()] == ["127.0.0.1", "workstation"]
    result = cli.invoke(main, [str(image), str(image)])
    assert len(opened) == 1
    assert urlsplit(result.stdout).path.strip("/") not in opened[0]


def test_without_npm(monkeypatch: pytest.MonkeyPatch, cli: CliRunner, tmp_path: Path) -> None:
    """Where the page is not part of the installation and cannot be built, the message says what to do."""
    monkeypatch.setattr(building, "npm", lambda: None)
    monkeypatch.setattr(site, "SHIPPED", tmp_path / "none")
    monkeypatch.setenv("DMFNET_CACHE", str(tmp_path / "cache"))
    image = tmp_path / "image.png"
    image.write_bytes(b"image")
    result = cli.invoke(main, [str(image), str(image)])
    assert result.exit_code == 2
    assert "npm is not installed" in result.stderr
    assert "or install a wheel of dmfnet-fast" in result.stderr


@pytest.mark.usefixtures("tools")
def test_command(browse: Browse, tmp_path: Path) -> None:
    """The command prints the address, serves both files until it is interrupted, and ends without an error."""
    head = make_phantom(2, 64)
    write_image(tmp_path / "mri.png", head.mri)
    write_image(tmp_path / "pet.png", head.pet)
    # The page that the fixture has built is put where the installed package would hold it.
    # Where the tests run in the background, their processes would ignore interrupts.
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from pathlib import Path; from dmfnet_fast.web import site; "
        "site.SHIPPED = Path(sys.argv.pop(1)); from dmfnet_fast.commands.view import main; main()"
    )
    command = [sys.executable, "-c", start, str(site.SHIPPED), "mri.png", "pet.png", "--no-browser"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{30,}/#open=given\.json", url)
        found = browse("opened", url)
        assert found["names"] == ["mri.png - 64 x 64", "pet.png - 64 x 64"]
        assert not found["complaints"]
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert "Traceback" not in said


def test_results(browse: Browse, cli: CliRunner, tools: Path, tmp_path: Path) -> None:
    """A fused volume is shown with its alignment and its report, whichever format it has."""
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    del tools
    head = make_head(seed=1, size=48)
    for name, volume in (("mr", head.mr), ("pet", head.pet)):
        write_nifti(volume, tmp_path / f"{name}.nii.gz")
    write_head(head, tmp_path)
    nifti = [str(tmp_path / "mr.nii.gz"), str(tmp_path / "pet.nii.gz"), "--modality-b", "PET"]
    for kind in ("nifti", "png", "dicom"):
        output = tmp_path / kind
        given = [str(tmp_path / "MR"), str(tmp_path / "PT")] if kind == "dicom" else nifti
        result = cli.invoke(fuse, [*given, "--precision", "float32", "-o", str(output), "--format", kind])
        assert result.exit_code == 0, result.output
        files, place = result_site(output, "nano")
        with Server(files).in_background() as url:
            found = browse("opened", url + place)
        assert found["links"] == ["report", "alignment", "report as JSON"]
        assert found["figures"] == ["fused"]
        assert found["slice"] == f"{head.mr.shape[0] // 2 + 1} of {head.mr.shape[0]}"
        assert found["brightness"] > 0
        assert not found["complaints"]
