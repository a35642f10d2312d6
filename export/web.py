"""The target `web`: a page for browsers that holds the network; see `dmfnet_fast.web`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.onnx_metadata import is_sealed, seal
from dmfnet_fast.artifacts.parity import check
from dmfnet_fast.errors import require
from dmfnet_fast.web.site import Network, built, one_file, write_folder
from export.errors import RequestError
from export.onnx.source import NOTHING_WRITTEN, Graph, Step
from export.request import Request, Tell
from export.verify import on_onnx_runtime

_SPATIAL = [2, 3]


def check_machine(_: Request) -> None:
    """Build the page, unless it is built; see `Target.check_machine`."""
    built()


def one_axis_at_a_time(content: bytes) -> bytes:
    """Replace means over height and width by means over width and then over height.

    ONNX Runtime sums a whole plane in float32 without intermediate sums, which loses digits: of 512x512 pixels so many
    that turbo misses the limit. Sums of rows first lose none that matter, and take no longer.
    """
    onnx: Any = require("onnx", extra="export")
    model = onnx.ModelProto.FromString(content)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # Taking an axis away moves none before it.
    model.graph.initializer.extend(
        onnx.helper.make_tensor(f"one_axis_{axis}", onnx.TensorProto.INT64, [1], [axis]) for axis in _SPATIAL
    )
    nodes = []
    for node in model.graph.node:
        axes = constants[node.input[1]] if node.op_type == "ReduceMean" and len(node.input) > 1 else None
        if axes is None or sorted(axis % 4 for axis in axes.tolist()) != _SPATIAL:
            nodes.append(node)
            continue
        between = f"{node.output[0]}_of_rows"
        for axis, source, target in ((3, node.input[0], between), (2, between, node.output[0])):
            mean = onnx.helper.make_node("ReduceMean", [source, f"one_axis_{axis}"], [target], f"{node.name}_{axis}")
            mean.attribute.extend(node.attribute)
            nodes.append(mean)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    # The seal is of the original.
    kept = [entry for entry in model.metadata_props if entry.key != "content_sha256"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return bytes(model.SerializeToString())


def write(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> None:
    """Write the page, as a folder or as one file; see `Target.write`."""
    if interface_of(graph.config).timesteps:
        raise RequestError(f"{request.source}: takes noise, which the page does not draw; export nano or turbo")
    content = graph.content
    if b"ReduceMean" in content:
        content = one_axis_at_a_time(content)
        with step("checking means of rows and columns with ONNX Runtime") as report:
            parity = on_onnx_runtime(content, request.precision, graph.references, report)
        check(parity, NOTHING_WRITTEN)
        tell(str(parity))
    network = Network.of(content if is_sealed(content) else seal(content), request.name, str(request.source))
    unfinished = folder / request.output.name
    with step("writing the page"):
        if request.single_file:
            unfinished.write_bytes(one_file(network))
        else:
            unfinished.mkdir()
            write_folder(unfinished, network)
        unfinished.replace(request.output)
