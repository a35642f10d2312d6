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


def axes_of(model: Any) -> dict[str, list[int]]:
    """The axes of the means in an ONNX model, by the name of the input that holds them; -1 is the last of four."""
    onnx: Any = require("onnx", extra="export")
    found = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) <= 1:
            found[tensor.name] = [int(axis) for axis in onnx.numpy_helper.to_array(tensor).ravel()]
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value_ints":
                found[node.output[0]] = list(attribute.ints)
    return found


def one_axis_at_a_time(content: bytes) -> bytes:
    """Replace means over height and width by means over width and then over height.

    ONNX Runtime sums a whole plane in float32 without intermediate sums, which loses digits: of 512x512 pixels so many
    that turbo misses the limit. Sums of rows first lose none that matter, and take no longer.
    """
    onnx: Any = require("onnx", extra="export")
    model = onnx.ModelProto.FromString(content)
    axes_by_name = axes_of(model)
    # Taking an axis away moves none before it.
    model.graph.initializer.extend(
        onnx.helper.make_tensor(f"one_axis_{axis}", onnx.TensorProto.INT64, [1], [axis]) for axis in _SPATIAL
    )
    nodes = []
    for node in model.graph.node:
        axes = axes_by_name[node.input[1]] if node.op_type == "ReduceMean" else []
        if sorted(axis % 4 for axis in axes) != _SPATIAL:
            nodes.append(node)
            continue
        between = f"{node.output[0]}_of_rows"
        for axis, source, target in ((3, node.input[0], between), (2, between, node.output[0])):
            mean = onnx.helper.make_node("ReduceMean", [source, f"one_axis_{axis}"], [target], f"{node.name}_{axis}")
            mean.attribute.extend(node.attribute)
            nodes.append(mean)
    used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    kept_nodes = [node for node in nodes if node.op_type != "Constant" or used.intersection(node.output)]
    del model.graph.node[:]
    model.graph.node.extend(kept_nodes)
    # The seal is of the original.
    kept = [entry for entry in model.metadata_props if entry.key != "content_sha256"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return bytes(model.SerializeToString())


def write(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> None:
    """Write the page, as a folder or as one file; see `Target.write`."""
    if interface_of(graph.config).timesteps:
        raise RequestError(f"{request.source}: takes noise, which the page does not draw; export nano or turbo")
    if graph.pixels:
        raise RequestError(f"{request.source}: takes 8-bit images, and the page has its own rules: give another file")
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
