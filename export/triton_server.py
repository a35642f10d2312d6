"""Models for NVIDIA Triton Inference Server: one network at one size, with any noise stored in the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from dmfnet_fast.artifacts.interface import OUTPUT, Interface, interface_of
from dmfnet_fast.artifacts.parity import check
from dmfnet_fast.diffusion.noise import fusion_noise
from dmfnet_fast.errors import require
from export.errors import RequestError
from export.onnx.source import NOTHING_WRITTEN, Graph, Step
from export.request import Request, Tell
from export.tensorrt.builder import Profile
from export.verify import has_onnx_runtime, on_onnx_runtime

Make: TypeAlias = Callable[[Request, Graph, Path, Step, Tell], tuple[bytes, Mapping[str, str]]]

# Longest time that a request waits for others to fill its batch.
QUEUE_MICROSECONDS = 500

_CONFIGURATION = """\
# Fuses luminances in [-1, 1]: `a` the MRI's, `b` the other modality's, 1 x {height} x {width} float32 each.
{comment}name: "{name}"
platform: "{platform}"
max_batch_size: {batch}
input [
{inputs}
]
output [
  {{ name: "{output}" data_type: TYPE_FP32 dims: [ 1, {height}, {width} ] }}
]
instance_group [ {{ count: 1 kind: {kind} }} ]
{batching}{parameters}
model_warmup [
  {{
    name: "black images"
    batch_size: 1
{warm_up}
  }}
]
"""
_INTERVAL = """\
# `interval` are the least and the greatest luminance that each pixel may have, 2 x {height} x {width} (see
# dmfnet_fast.images.color.Canvas, which also puts the colors back); -1 and 1 allow all.
"""


def of_one_size(content: bytes, interface: Interface, profile: Profile) -> bytes:
    """Fix the height and width of a model, and replace its noise input, if any, with the noise of seed 0.

    The server batches every input, so an input that all pairs share cannot be served.
    """
    onnx: Any = require("onnx", extra="export")
    proto = onnx.ModelProto.FromString(content)
    height, width = profile.opt[1:]
    graph = proto.graph
    if interface.timesteps:
        noise = fusion_noise(0, height, width, interface.timesteps)
        graph.initializer.append(onnx.numpy_helper.from_array(noise, "noise"))
        kept = [value for value in graph.input if value.name != "noise"]
        del graph.input[:]
        graph.input.extend(kept)
    for value in (*graph.input, *graph.output):
        for axis, size in zip((2, 3), (height, width), strict=True):
            value.type.tensor_type.shape.dim[axis].dim_value = size
    # The seal in the metadata belongs to the original file.
    del proto.metadata_props[:]
    return bytes(proto.SerializeToString())


def configuration(
    name: str, platform: str, on_cpu: bool, interface: Interface, profile: Profile, about: Mapping[str, str]
) -> str:
    """The text of config.pbtxt, the server's ModelConfig.

    Args:
        name: name of the model and of its folder.
        platform: the server's name for the kind of file.
        on_cpu: whether the model is served on a CPU, otherwise on a GPU.
        interface: inputs of the network.
        profile: the size and the largest batch.
        about: entries of `parameters` that describe the model.
    """
    pairs, height, width = profile.max
    shapes = interface.shapes(pairs, height, width)
    inputs = {
        label: f"data_type: TYPE_FP32 dims: [ {shape[1]}, {height}, {width} ]"
        for label, shape in shapes.items()
        if label != "noise"
    }
    return _CONFIGURATION.format(
        comment=_INTERVAL.format(height=height, width=width) if interface.interval else "",
        name=name,
        platform=platform,
        batch=pairs,
        height=height,
        width=width,
        inputs=",\n".join(f'  {{ name: "{label}" {kind} }}' for label, kind in inputs.items()),
        output=OUTPUT,
        kind="KIND_CPU" if on_cpu else "KIND_GPU",
        batching=batching(pairs),
        parameters=parameters(about),
        warm_up="\n".join(
            f'    inputs {{ key: "{label}" value {{ {kind} zero_data: true }} }}' for label, kind in inputs.items()
        ),
    )


def batching(pairs: int) -> str:
    """The line of a configuration that gathers single requests into batches of up to `pairs`."""
    return f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}\n" if pairs > 1 else ""


def parameters(about: Mapping[str, str]) -> str:
    """The lines of a configuration that describe the model."""
    return "\n".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
        for key, value in about.items()
    )


def write_repository(folder: Path, files: Mapping[str, bytes], config: str) -> None:
    """Write the model's folder: config.pbtxt, and version 1 of the model, given as contents of files by name."""
    version = folder / "1"
    version.mkdir(parents=True)
    for name, content in files.items():
        (version / name).write_bytes(content)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")


def writer(platform: str, file: str, make: Make) -> Callable[[Request, Graph, Path, Step, Tell], None]:
    """A `Served.write` for a backend that runs a network of one size by itself.

    Args:
        platform: the server's name for the kind of file.
        file: name of the model's file.
        make: returns the content of that file for a graph of one size, which contains any noise, and further entries
            for the configuration's `parameters`; the folder is for its own files. Raises the same errors as
            `Target.write`.
    """
    return partial(_write, platform, file, make)


def _write(
    platform: str, file: str, make: Make, request: Request, graph: Graph, folder: Path, step: Step, tell: Tell
) -> None:
    profile = request.profile
    assert profile is not None
    if graph.pixels:
        raise RequestError(
            f"{request.source}: takes 8-bit images, the server's model takes luminances: export without --pixels"
        )
    interface = interface_of(graph.config)
    served = of_one_size(graph.content, interface, profile)
    # The noise is inside, so that the configuration of the network that is served has none.
    config_without_noise = {**graph.config, "noise": False}
    served_interface = interface_of(config_without_noise)
    known = [replace(r, interface=served_interface) for r in graph.references if r.shape[1:] == profile.opt[1:]]
    about = {"weights": graph.weights, "precision": graph.precision}
    if known and has_onnx_runtime() and request.precision != "bfloat16":
        with step("checking what is served with ONNX Runtime") as report:
            parity = on_onnx_runtime(served, request.precision, known, report)
        check(parity, NOTHING_WRITTEN)
        about["parity"] = str(parity)
    of_this_size = replace(graph, content=served, config=config_without_noise, references=tuple(known))
    content, more = make(request, of_this_size, folder, step, tell)
    name, on_cpu = request.output.name, request.precision in request.target.cpu_precisions
    config = configuration(name, platform, on_cpu, interface, profile, {**about, **more})
    write_repository(folder / name, {file: content}, config)
    (folder / name).replace(request.output)
