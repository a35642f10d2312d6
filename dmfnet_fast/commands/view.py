"""`dmfnet-view`: shows two images or volumes, or results, in the browser of this computer."""

from __future__ import annotations

import json
import os
import webbrowser
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import click

from dmfnet_fast.commands.shared import PATH, command
from dmfnet_fast.engines import DEFAULT, shipped
from dmfnet_fast.engines.kinds import OPENVINO
from dmfnet_fast.errors import EngineError, ImageError, warn
from dmfnet_fast.volumes.report import COMMAND
from dmfnet_fast.web.server import LOCAL, Server
from dmfnet_fast.web.site import Network, page_files
from dmfnet_fast.wording import alternatives

# The page's limits.
MOST_FILES = 20_000
MOST_BYTES = 2**31
REPORT = "report.json"
FORMATS = {"nifti": ".nii", "dicom": ".dcm", "png": ".png"}  # of fused volumes, with the suffix of their files
LOCAL_ONLY = (LOCAL, "localhost", "::1")


def _network(engine: str) -> Network:
    """The network that the page runs, of a shipped name or of an .onnx file."""
    path = shipped()[engine].with_suffix(OPENVINO.suffix) if engine in shipped() else Path(engine)
    if path.suffix.lower() != OPENVINO.suffix:
        raise EngineError(f"{path}: the page runs {OPENVINO.suffix} files; make one with dmfnet-export --target onnx")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error
    return Network.of(content, path.stem.removeprefix("dmfnet-"), str(path))


def _files_of(path: Path) -> list[Path]:
    """A file, or all files in a folder."""
    if not path.exists():
        raise ImageError(f"{path}: no such file or folder")
    # One more than the limit is enough to know: the folder may be that of a whole disk.
    inside = (found for found in path.rglob("*") if found.is_file())
    files = [path] if path.is_file() else sorted(islice(inside, MOST_FILES + 1))
    if not files:
        raise ImageError(f"{path}: is an empty folder; give an image, a NIfTI file or a folder of DICOM files")
    if len(files) > MOST_FILES:
        raise ImageError(f"{path}: holds more than {MOST_FILES} files; give the folder of one series")
    for file in files:
        if not os.access(file, os.R_OK):
            raise ImageError(f"{file}: cannot be read: permission denied")
    size = sum(file.stat().st_size for file in files)
    if size > MOST_BYTES:
        raise ImageError(f"{path}: holds {size / 1e9:.1f} GB, more than the page takes; give one file or one series")
    return files


def pair_site(a: Path, b: Path, engine: str) -> tuple[dict[str, bytes | Path], str]:
    """The page with two inputs, and the address within it that opens them.

    Raises:
        ImageError: an input does not exist, or is empty.
        EngineError: the page cannot run the engine.
        OutputError: the page has to be built, which fails.
    """
    inputs = {"a": _files_of(a), "b": _files_of(b)}
    site: dict[str, bytes | Path] = dict(page_files(_network(engine)))
    listed: dict[str, list[dict[str, str]]] = {}
    for side, files in inputs.items():
        listed[side] = [{"path": f"given/{side}/{n}", "name": file.name} for n, file in enumerate(files)]
        site |= {one["path"]: file.resolve() for one, file in zip(listed[side], files, strict=True)}
    site["given.json"] = json.dumps(listed).encode()
    return site, "#open=given.json"


def _report_in(results: Path) -> Path:
    """The report of dmfnet-fuse in a folder, or the one that is given itself."""
    if results.is_file() and results.name.endswith(REPORT):
        return results
    if not results.is_dir():
        raise ImageError(f"{results}: is no folder of results, and no {REPORT}")
    found = sorted(path for path in results.glob(f"*{REPORT}") if path.is_file())
    if not found:
        raise ImageError(f"{results}: holds no {REPORT}, which dmfnet-fuse writes with a fused volume")
    if len(found) > 1:
        names = alternatives(path.name for path in found)
        raise ImageError(f"{results}: holds results of several runs; give one of them, {names}, as --results")
    return found[0]


def _format_in(report: Path) -> str:
    """The format of the fused volume that a report is of: one of FORMATS."""
    advice = "give the folder that dmfnet-fuse wrote with a fused volume"
    try:
        known = json.loads(report.read_bytes())
    except OSError as error:
        raise ImageError(f"{report}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{report}: is damaged, or no report at all (its text is not JSON); {advice}") from error
    made_by = known.get("made_by") if isinstance(known, dict) else None
    if made_by != COMMAND:
        maker = f"is a report of {made_by}" if isinstance(made_by, str) else "was not written by dmfnet-fuse"
        raise ImageError(f"{report}: {maker}, and holds no fused volume; {advice}")
    output = known.get("output")
    kind = output.get("format") if isinstance(output, dict) else None
    if not isinstance(kind, str) or kind not in FORMATS:
        said = f"names the format {kind!r}" if isinstance(kind, str) else "names no format"
        raise ImageError(
            f"{report}: {said} of the fused volume, so it is damaged or of another version of dmfnet-fuse; "
            "fuse the volumes again with this version"
        )
    return kind


def _volume_files(report: Path) -> list[Path]:
    """The files of the fused volume that a report is of."""
    kind = _format_in(report)
    prefix = report.name.removesuffix(REPORT)
    stem = prefix.removesuffix("-") or "fused"
    files = [report.with_name(f"{stem}.nii{end}") for end in (".gz", "")]
    if kind != "nifti":
        files = sorted((report.parent / "fused").glob(f"*{FORMATS[kind]}"))
    found = [file for file in files if file.is_file()]
    if not found:
        raise ImageError(
            f"{report}: the fused volume, {kind}, is not beside it; give the folder that dmfnet-fuse wrote"
        )
    return found[:1] if kind == "nifti" else found


def result_site(results: Path, engine: str) -> tuple[dict[str, bytes | Path], str]:
    """The page with a fused volume, the image of its alignment and its report; see `pair_site`."""
    report = _report_in(results)
    site: dict[str, bytes | Path] = dict(page_files(_network(engine)))
    files = _volume_files(report)
    volume = [{"path": f"given/result/{n}", "name": file.name} for n, file in enumerate(files)]
    site |= {one["path"]: file.resolve() for one, file in zip(volume, files, strict=True)}
    links = []
    prefix = report.name.removesuffix(REPORT)
    for name, words in (("report.html", "report"), ("alignment.png", "alignment"), (REPORT, "report as JSON")):
        path = report.with_name(f"{prefix}{name}")
        if path.is_file():
            links.append({"path": f"given/{name}", "name": words})
            site[f"given/{name}"] = path.resolve()
    site["given.json"] = json.dumps({"result": volume, "links": links}).encode()
    return site, "#open=given.json"


@command()
@click.argument("a", type=PATH, required=False)
@click.argument("b", type=PATH, required=False)
@click.option("--results", type=PATH, help="Show a fused volume instead: the folder that dmfnet-fuse wrote.")
@click.option("--engine", default=DEFAULT, help=f"Network of the page: {' or '.join(shipped())}, or an .onnx file.")
@click.option(
    "--address",
    default=LOCAL,
    help="Address to listen on; others than this computer's are open to the network, 0.0.0.0 stands for all.",
)
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port to listen on; 0 is any free one.")
@click.option("--browser/--no-browser", default=True, help="Open the browser.")
@click.version_option(package_name="dmfnet-fast")
def main(
    a: Path | None, b: Path | None, results: Path | None, engine: str, address: str, port: int, browser: bool
) -> None:
    """Show A (the MRI) and B (CT, PET or SPECT) and fuse them in the browser: images, NIfTI files or DICOM folders.

    Only this computer can reach the page, by an address that holds a secret. Ctrl-C ends it.
    """
    if results is not None:
        if a is not None or b is not None:
            raise click.UsageError("give A and B, or --results, not both")
        site, place = result_site(results, engine)
    elif a is None or b is None:
        raise click.UsageError("give A and B, or --results")
    else:
        site, place = pair_site(a, b, engine)
    with Server(site, address, port) as server:
        place = quote(place, safe="#=")
        for url in server.urls:
            click.echo(f"{url}{place}")
        if address not in LOCAL_ONLY:
            warn(f"{address}: other computers can see these files, by the address and without encryption")
        click.echo("Ctrl-C ends it", err=True)
        if browser:
            webbrowser.open(server.once(place))
        try:
            server.serve()
        except KeyboardInterrupt:
            click.echo(err=True)


if __name__ == "__main__":
    main()
