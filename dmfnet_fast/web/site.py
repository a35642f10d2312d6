"""The page with a network: a folder for any static server, or one HTML file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmfnet_fast.artifacts.cache import cache_folder
from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.onnx_metadata import PIXELS, check_sealed, exported_properties
from dmfnet_fast.errors import EngineError, OutputError
from dmfnet_fast.images.formats.png import encoded
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.web import building
from dmfnet_fast.web.means import one_axis_at_a_time

SHIPPED = Path(__file__).parent / "built"
NETWORK, MANIFEST, NOTICES = "network.onnx", "manifest.json", "THIRD-PARTY-NOTICES.txt"
# Only files of the page itself: no other address, no inline code, no form that sends anything.
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src 'self' blob: data:"
FOLDER_POLICY = (
    f"{_POLICY}; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; worker-src 'self'"
)


@dataclass(frozen=True)
class Network:
    """A network for the page.

    Attributes:
        name: shown on the page.
        content: the .onnx file as the page runs it, float32: that of dmfnet-export with means as in
            `means.one_axis_at_a_time`, sealed.
        weights: hash of its weights.
    """

    name: str
    content: bytes
    weights: str

    @classmethod
    def of(cls, content: bytes, name: str, file: str) -> Network:
        """Check the content of an .onnx file, and prepare it for the page.

        Args:
            content: of the file.
            name: name of the network.
            file: name of the file, for errors.

        Raises:
            EngineError: it was not made by dmfnet-export, has changed since, or is one that the page does not run.
        """
        known = exported_properties(content, file)
        check_sealed(content, file)
        if known.get("precision") != "float32":
            raise EngineError(
                f"{file}: is {known.get('precision')}, and the page runs float32; export the weights anew"
            )
        if PIXELS in known:
            raise EngineError(f"{file}: takes 8-bit images, and the page has its own rules: export without --pixels")
        if interface_of(json.loads(known["config"])).timesteps:
            raise EngineError(
                f"{file}: takes noise, which the page does not draw; give a network without, such as nano"
            )
        return cls(name, one_axis_at_a_time(content), known["sha256"])


def built() -> Path:
    """The folder of the built page: of the installed package, else built with npm and kept in the cache.

    Building is told on standard error, as it takes seconds.

    Raises:
        OutputError: it has to be built, and npm is missing or fails, or there is no cache folder.
    """
    if SHIPPED.is_dir():
        return SHIPPED
    cache = cache_folder()
    if cache is None:
        raise OutputError(
            "the page has to be built, but the cache folder cannot be written; set DMFNET_CACHE to another"
        )
    folder = cache / f"page-{building.digest()}"
    if not folder.is_dir():
        # Commands alone come here.
        print("building the page, once ...", end="", file=sys.stderr, flush=True)
        started = time.perf_counter()
        try:
            building.build(folder)
        except building.BuildError as error:
            print(file=sys.stderr)
            raise OutputError(f"{error}; or install a wheel of dmfnet-fast, which holds the built page") from error
        print(f" {time.perf_counter() - started:.1f} s", file=sys.stderr)
    return folder


def _examples() -> dict[str, bytes]:
    """Two images of a synthetic head, by their names."""
    head = make_phantom(seed=0)
    return {"example-mri.png": encoded(head.mri), "example-pet.png": encoded(head.pet)}


def _manifest(network: Network, files: Mapping[str, bytes]) -> bytes:
    from dmfnet_fast import __version__

    about: dict[str, Any] = {
        "version": __version__,
        "network": {"name": network.name, "weights": network.weights},
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in sorted(files.items())
        },
    }
    return json.dumps(about, indent=1).encode() + b"\n"


def _filled(template: str, policy: str, style: str, script: str) -> bytes:
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}" />'
    for mark, text in (("policy", head), ("style", style), ("script", script)):
        template = template.replace(f"<!-- {mark} -->", text)
    return template.encode()


def page_files(network: Network) -> dict[str, bytes]:
    """The files of the page as a folder, by their names.

    Raises:
        OutputError: the page has to be built, which fails.
    """
    files = {}
    for path in built().iterdir():
        packed = path.suffix == ".gz"
        files[path.stem if packed else path.name] = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    del files["worker-with-runtime.js"]  # for one file alone
    template = files["index.html"].decode()
    style = '<link rel="stylesheet" href="style.css" />'
    files["index.html"] = _filled(template, FOLDER_POLICY, style, '<script type="module" src="page.js"></script>')
    files |= {NETWORK: network.content, **_examples()}
    return files | {MANIFEST: _manifest(network, files)}


def write_folder(folder: Path, network: Network) -> None:
    """Write the page to an existing, empty folder; for the errors see `page_files`."""
    for name, content in page_files(network).items():
        (folder / name).write_bytes(content)


def _hash_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def one_file(network: Network) -> bytes:
    """The page as one HTML file, which runs from a disk; for the errors see `page_files`."""
    folder, files = built(), page_files(network)
    files["worker.js"] = (folder / "worker-with-runtime.js").read_bytes()
    style, script = files.pop("style.css").decode(), files.pop("page.js").decode()
    notices = files.pop(NOTICES).decode()
    for name in ("index.html", MANIFEST, *(name for name in files if name.endswith(".mjs"))):
        del files[name]
    files[MANIFEST] = _manifest(network, files)
    # Browsers do not run scripts of unknown types.
    blocks = [f'<script type="text/plain" id="licenses">\n{notices}</script>']
    for name, content in files.items():
        packed = folder / f"{name}.gz"
        data = packed.read_bytes() if packed.exists() else gzip.compress(content, mtime=0)
        blocks.append(f'<script type="application/gzip" id="file:{name}">{base64.b64encode(data).decode()}</script>')
    policy = (
        f"{_POLICY}; script-src {_hash_of(script)} blob: 'wasm-unsafe-eval'; style-src {_hash_of(style)}; "
        "connect-src 'none'; worker-src blob:"
    )
    # Within a script, these change where it ends.
    assert not any(mark in text.lower() for mark in ("</script", "<!--") for text in (script, notices))
    scripts = "\n".join([*blocks, f'<script type="module">{script}</script>'])
    return _filled((folder / "index.html").read_text("utf-8"), policy, f"<style>{style}</style>", scripts)
