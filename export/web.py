"""The target `web`: a page for browsers that holds the network; see `dmfnet_fast.web`."""

from __future__ import annotations

from pathlib import Path

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.onnx_metadata import is_sealed, seal
from dmfnet_fast.artifacts.parity import check
from dmfnet_fast.web.site import Network, built, one_file, write_folder
from export.errors import RequestError
from export.onnx.source import NOTHING_WRITTEN, Graph, Step
from export.request import Request, Tell
from export.verify import on_onnx_runtime


def check_machine(_: Request) -> None:
    """Build the page, unless it is built; see `Target.check_machine`."""
    built()


def write(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> None:
    """Write the page, as a folder or as one file; see `Target.write`."""
    if interface_of(graph.config).timesteps:
        raise RequestError(f"{request.source}: takes noise, which the page does not draw; export nano or turbo")
    if graph.pixels:
        raise RequestError(f"{request.source}: takes 8-bit images, and the page has its own rules: give another file")
    content = graph.content if is_sealed(graph.content) else seal(graph.content)
    network = Network.of(content, request.name, str(request.source))
    if network.content != content:
        with step("checking means of rows and columns with ONNX Runtime") as report:
            parity = on_onnx_runtime(network.content, request.precision, graph.references, report)
        check(parity, NOTHING_WRITTEN)
        tell(str(parity))
    unfinished = folder / request.output.name
    with step("writing the page"):
        if request.single_file:
            unfinished.write_bytes(one_file(network))
        else:
            unfinished.mkdir()
            write_folder(unfinished, network)
        unfinished.replace(request.output)
