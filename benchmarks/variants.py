"""The variants that are compared: the published network, alternatives to our work, and our rewrites step by step."""

from __future__ import annotations

import atexit
import copy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.artifacts.network_inputs import network_inputs
from dmfnet_fast.diffusion.schedule import fusion_levels
from dmfnet_fast.engines import shipped
from dmfnet_fast.engines.devices import has_native_bfloat16
from dmfnet_fast.engines.openvino_engine import OpenVINOEngine, has_bfloat16, load_openvino, shared_core
from dmfnet_fast.images.color import Canvas
from dmfnet_fast.model import PRESETS, DMFNet, Network, inference, load_model, network_of, preset, rewrites, save_model
from dmfnet_fast.model.denoiser import TAPS, UP_BLOCKS
from dmfnet_fast.phantom import make_phantom
from dmfnet_fast.precision import Precision

Run: TypeAlias = Callable[[Mapping[str, NDArray[np.float32]]], NDArray[np.float32]]


class Published(nn.Module):
    """Computes like the published script: runs the passes one by one, each to completion, and keeps all features.

    A network without noise takes one pass per image.
    """

    def __init__(self, model: DMFNet) -> None:
        super().__init__()
        self.denoiser, self.fusion = copy.deepcopy(model.denoiser), copy.deepcopy(model.fusion)
        self.levels = fusion_levels(model.config.timesteps)
        self.one_pass: Callable[[Tensor, Tensor], list[Tensor]] = self._one_pass

    def _one_pass(self, x: Tensor, level: Tensor) -> list[Tensor]:
        """All features of one noisy image, including the reconstruction, which is computed but never used."""
        outputs = list(self.denoiser.up_path(x, level))
        self.denoiser.final_conv(outputs[-1])
        return outputs

    def forward(self, a: Tensor, b: Tensor, noise: Tensor | None = None, interval: Tensor | None = None) -> Tensor:
        features = [
            [
                self.one_pass(
                    image if noise is None else level * image + sigma * noise[step, n],
                    torch.full((len(a), 1), level, device=a.device),
                )
                for step, (level, sigma) in enumerate(self.levels)
            ]
            for n, image in enumerate((a, b))
        ]
        taps = [UP_BLOCKS - 1 - tap for tap in reversed(TAPS)]
        joined = [[torch.cat([outputs[tap] for outputs in steps], dim=1) for tap in taps] for steps in features]
        return rewrites.finished(self.fusion, joined, a, b, interval)


def as_trained(model: Network) -> nn.Module:
    """The network that variants are compared with: DM-FNet as published, or an unpublished student as it is."""
    return (Published(model) if isinstance(model, DMFNet) else copy.deepcopy(model)).eval()


@dataclass
class Variant:
    """One row of the table.

    Attributes:
        name: description for the table.
        engine, precision: what runs the network.
        build: makes the callable from a network and the size of the image.
        needs: a library without which the row is skipped.
    """

    name: str
    engine: str
    precision: str
    build: Callable[[Any, int], Run]
    needs: str = "torch"

    @property
    def missing(self) -> str | None:
        """Why this machine cannot run the variant, or None if it can."""
        if not find_spec(self.needs):
            return f"{self.needs} is not installed"
        if self.precision == "int8" and not find_spec("nncf"):
            return "nncf, which makes int8 networks, is not installed"
        if self.precision == "bfloat16":
            native = has_bfloat16() if self.needs == "openvino" else has_native_bfloat16("cpu")
            # Emulated bfloat16 takes up to twenty times as long as float32.
            return None if native else f"{self.engine} has no native bfloat16 on this CPU"
        return None


def network(name: str) -> Network:
    """Loads the shipped weights; other networks get random weights scaled so that features keep their magnitude."""
    if name in shipped():
        return load_model(shipped()[name])
    generator = torch.Generator().manual_seed(0)
    model = network_of(preset(name)).eval()
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if label.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() > 1:
                scale = 0.7 * (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@cache
def gigaflop(name: str, size: int) -> float:
    """GFLOP of the optimized network for a size x size pair, multiply-adds counted as two."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes = interface_of(preset(name).to_dict()).shapes(1, size, size)
        inputs = {label: torch.empty(shape) for label, shape in shapes.items()}
        inference.optimize(network_of(preset(name)))(**inputs)
    return counter.get_total_flops() / 1e9


def inputs_of(network: Network, size: int) -> dict[str, NDArray[np.float32]]:
    """Inputs of `network` for a phantom, MRI and PET."""
    head = make_phantom(0, size)
    return network_inputs(interface_of(network.config.to_dict()), [Canvas(head.mri, head.pet)])[0]


def _on_arrays(module: Callable[..., Tensor]) -> Run:
    def run(inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return module(**{name: torch.tensor(array) for name, array in inputs.items()}).float().numpy()

    return run


def _as_trained(model: Network, _: int) -> Run:
    return _on_arrays(as_trained(model))


def _compiled(dtype: torch.dtype) -> Callable[[DMFNet, int], Run]:
    def build(model: DMFNet, _: int) -> Run:
        torch.compiler.reset()
        net = Published(model).eval()
        net.one_pass = torch.compile(net.one_pass)
        net.fusion.compile()

        def module(**tensors: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                return net(**tensors)

        return _on_arrays(module)

    return build


REWRITE_NAMES: dict[Callable[[rewrites.PassByPass], None], str] = {
    rewrites.fold_noise_levels: "+ noise levels folded into biases",
    rewrites.upsample_transposed: "+ upsampling as transposed convolution",
    rewrites.avoid_concatenations: "+ no concatenations",
    rewrites.upsample_once: "+ one bilinear upsampling a level",
    rewrites.split_attention: "+ attention fusion without interleaving",
    rewrites.order_channels_last: "+ channels last",
}


def _rewritten(count: int) -> Callable[[DMFNet, int], Run]:
    """Drops the unused tail, merges features pass by pass, and applies the first `count` rewrites."""

    def build(model: DMFNet, _: int) -> Run:
        smaller = copy.deepcopy(model)
        rewrites.drop_unused_blocks(smaller)
        net = rewrites.PassByPass(smaller).eval()
        for rewrite in inference.REWRITES[:count]:
            rewrite(net)
        return _on_arrays(net)

    return build


def _optimized(model: Network, _: int) -> Run:
    return _on_arrays(inference.optimize(model, "bfloat16"))


REFUSED = "differs from the weights"  # part of the message of dmfnet-export


class RefusedError(Exception):
    """An export was refused because its output differs from that of the weights."""


@cache
def exported(name: str, precision: str = "float32") -> Path:
    """Returns the ONNX file of `network(name)` in "float32" or "int8".

    The export runs in a process of its own, so that its memory does not count here.

    Raises:
        RefusedError: the export was refused; the message is that of the command.
    """
    if precision == "float32" and name in shipped() and shipped()[name].with_suffix(".onnx").exists():
        return shipped()[name].with_suffix(".onnx")
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_model(network(name), folder / "network.safetensors")
    command = [sys.executable, "-c", "from dmfnet_fast.commands.export import main; main()", "network.safetensors"]
    option = {"float32": "--fp32", "int8": "--int8"}[precision]
    process = subprocess.run(
        [*command, "--target", "onnx", option], cwd=folder, check=False, capture_output=True, text=True
    )
    if REFUSED in process.stderr:
        raise RefusedError(process.stderr.strip().splitlines()[-1])
    process.check_returncode()
    return folder / "network.onnx"


def file_of(precision: str) -> str:
    """Precision that the ONNX file must have for OpenVINO to run in `precision`."""
    return "int8" if precision == "int8" else "float32"


def _openvino(precision: Precision) -> Callable[[Network, int], Run]:
    def build(model: Network, _: int) -> Run:
        (name,) = [name for name, config in PRESETS.items() if config == model.config]
        return OpenVINOEngine(exported(name, file_of(precision)), "cpu", precision, None).run

    return build


def _openvino_on_published(hint: str) -> Callable[[DMFNet, int], Run]:
    """OpenVINO's conversion of the published network, for one size."""

    def build(model: DMFNet, size: int) -> Run:
        openvino = load_openvino()
        shapes = interface_of(model.config.to_dict()).shapes(1, size, size)
        example = {name: torch.zeros(shape) for name, shape in shapes.items()}
        with torch.inference_mode():
            converted = openvino.convert_model(
                Published(model).eval(), example_input=example, input=[(n, list(shape)) for n, shape in shapes.items()]
            )
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        compiled = shared_core().compile_model(converted, "CPU", settings)
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == hint
        request = compiled.create_infer_request()

        def run(inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
            request.infer(dict(inputs), share_inputs=True)
            return request.get_output_tensor().data.copy()

        return run

    return build


PUBLISHED = Variant("as published", "torch eager", "float32", _as_trained)
TRAINED = Variant("as trained", "torch eager", "float32", _as_trained)  # for students
OPTIMIZED = Variant("optimized", "torch eager", "bfloat16", _optimized)
OPENVINO = [
    Variant("optimized", "OpenVINO", "float32", _openvino("float32"), "openvino"),
    Variant("optimized", "OpenVINO", "bfloat16", _openvino("bfloat16"), "openvino"),
    Variant("optimized, 8-bit convolutions", "OpenVINO", "int8", _openvino("int8"), "openvino"),
]
COMPILED = [
    Variant("as published", "torch.compile", precision, _compiled(dtype))
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
]
REWRITTEN = [
    Variant(name, "torch eager", "float32", _rewritten(count))
    for count, name in enumerate(
        [
            "unused tail dropped, features merged as they come",
            *(REWRITE_NAMES[rewrite] for rewrite in inference.REWRITES),
        ]
    )
]
CONVERTED = [
    Variant("as published, in one graph", "OpenVINO", precision, _openvino_on_published(hint), "openvino")
    for precision, hint in (("float32", "f32"), ("bfloat16", "bf16"))
]

ALL = [PUBLISHED, *COMPILED, *REWRITTEN, OPTIMIZED, *CONVERTED, *OPENVINO]
OURS = [PUBLISHED, OPTIMIZED, *OPENVINO]
OF_STUDENT = [TRAINED, OPTIMIZED, *OPENVINO]
