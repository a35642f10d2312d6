"""Models for the Python backend of NVIDIA Triton Inference Server: images in and out, with the rules, on a CPU."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from dmfnet_fast.artifacts.onnx_metadata import seal
from export.onnx.source import Graph, Step
from export.request import Request, Tell
from export.triton_server import batching, parameters, write_repository

# The network, beside model.py; `served_model.NETWORK` is the same name.
NETWORK = "network.onnx"

_CONFIGURATION = """\
# Fuses 8-bit images of one slice: `a` the MRI, `b` the other modality; height x width x channels, of which a gray image
# has 1 and a color image 3. `fused` is as `b`. The rules of dmfnet-fast hold for every pixel.
#
# model.py imports dmfnet-fast with its extra `cpu`. Where the server's own Python does not have it, name an environment
# of the same version of Python that does:
#   parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "/opt/dmfnet" }} }}
name: "{name}"
backend: "python"
max_batch_size: {batch}
input [
  {{ name: "a" data_type: TYPE_UINT8 dims: [ -1, -1, -1 ] allow_ragged_batch: true }},
  {{ name: "b" data_type: TYPE_UINT8 dims: [ -1, -1, -1 ] allow_ragged_batch: true }}
]
output [
  {{ name: "fused" data_type: TYPE_UINT8 dims: [ -1, -1, -1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{batching}{parameters}
"""


def configuration(name: str, batch: int, about: dict[str, str]) -> str:
    """The text of config.pbtxt, the server's ModelConfig.

    Args:
        name: name of the model and of its folder.
        batch: most pairs at once.
        about: entries of `parameters` that describe the model.
    """
    return _CONFIGURATION.format(name=name, batch=batch, batching=batching(batch), parameters=parameters(about))


def write(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> None:
    """Write the folder of a served model; see `Served.write`."""
    del step, tell  # nothing here takes long
    assert request.profile is not None
    name = request.output.name
    about = {"weights": graph.weights, "precision": graph.precision}
    model = files("export").joinpath("served_model.py").read_bytes()
    content = {"model.py": model, NETWORK: seal(graph.content)}
    write_repository(folder / name, content, configuration(name, request.profile.max[0], about))
    (folder / name).replace(request.output)
