"""Our kernels as TensorRT plugins compiled ahead of time: an engine with them needs neither Python nor Triton.

`export.ops` lists the plugins, `plugin_graph` puts them into a graph, `plugin_kernels` plans the launch of each.
Feature maps are channels-last, as convolutions on tensor cores write them, so that nothing is reordered: HWC8 for
float16 and bfloat16, which every TensorRT with such plugins supports, and HWC for float32, for which HWC8 does not
exist. Tables and parameters are LINEAR. The graph is strongly typed, so only combinations of its own types are offered.
"""

# No `from __future__ import annotations`: TensorRT compares annotations as types, not as strings.
import inspect
import re
import types
from typing import Any

import torch

from dmfnet_fast.errors import EngineError, require
from export.ops import PLUGINS
from export.tensorrt.plugin_graph import with_plugins as with_plugins
from export.tensorrt.plugin_kernels import FEATURE_MAPS, Extent, Plugin, PluginLaunch
from export.tensorrt.ptx import Assembly, assemble
from kernels.launch import assumed

NAMESPACE = "dmfnet"
SINCE = (10, 9)
_VECTOR = 8  # HWC8 pads channels to a multiple of this

_registered: list[str] = []
# A global, as TensorRT requests kernels from its own threads, where our context variables are not set.
_building_for = [0]


def supports_plugins(version: str) -> bool:
    """Whether a release of TensorRT, such as "10.9.0.34", supports plugins that are compiled ahead of time."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= SINCE


def register_plugins(architecture: int) -> list[str]:
    """Register the plugins with TensorRT and set the architecture to compile them for. Safe to repeat.

    Args:
        architecture: compute capability times ten of the GPU that engines are built on.

    Returns:
        The names of the plugins, all in the namespace "dmfnet" and of version "1".

    Raises:
        MissingExtraError: tensorrt is not installed.
        EngineError: TensorRT is too old for such plugins.
    """
    trt = require("tensorrt", extra="tensorrt")
    if not supports_plugins(trt.__version__):
        needed = ".".join(map(str, SINCE))
        raise EngineError(f"TensorRT {trt.__version__} has no plugins with kernels of ours: it needs {needed} or newer")
    trtp = require("tensorrt.plugin", extra="tensorrt")
    _building_for[0] = architecture
    for plugin in PLUGINS:
        if plugin.name not in _registered:
            _register(trt, trtp, plugin)
            _registered.append(plugin.name)
    return list(_registered)


def _known(extent: Any) -> Extent:
    """Convert a constant dimension to an integer. Expressions are fake while TensorRT only queries types."""
    return extent if extent.is_fake or not extent.is_constant else extent.constant_value()


class _Types:
    """Types of feature maps and parameters in torch and in TensorRT."""

    def __init__(self, trt: Any) -> None:
        self._torch = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.BF16: torch.bfloat16,
        }
        self._words = {torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16"}

    def dtype(self, plugin: Plugin, desc: Any) -> torch.dtype:
        if desc.dtype not in self._torch:
            raise EngineError(f"{plugin.name}: a tensor is {desc.dtype}; the kernels take float32, float16, bfloat16")
        return self._torch[desc.dtype]

    def combination(self, plugin: Plugin, names: list[str], descs: list[Any]) -> tuple[str, str]:
        """The types and the formats of the tensors as two strings in TensorRT's syntax."""
        words, formats = [], []
        for name, desc in zip(names, descs, strict=True):
            dtype = self.dtype(plugin, desc)
            words.append(self._words[dtype])
            formats.append("LINEAR" if name not in FEATURE_MAPS else "HWC" if dtype == torch.float32 else "HWC8")
        return ", ".join(words), ", ".join(formats)


def _check_channels(plugin: Plugin, dtype: torch.dtype, channels: int) -> None:
    if channels < 0:
        raise EngineError(f"{plugin.name}: the number of channels must be fixed")
    if dtype != torch.float32 and channels % _VECTOR:
        raise EngineError(
            f"{plugin.name}: {channels} channels; in half precision TensorRT pads them to a multiple of {_VECTOR}, "
            "which the kernels do not read: build without plugins"
        )


def _signature(trtp: Any, plugin: Plugin, after: dict[str, Any], result: Any) -> inspect.Signature:
    """The signature of a plugin function: the inputs, then the parameters `after`, by name and annotation."""
    annotations = {**dict.fromkeys(plugin.inputs, trtp.TensorDesc), **after}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=kept) for name, kept in annotations.items()]
    return inspect.Signature(parameters, return_annotation=result)


def _register(trt: Any, trtp: Any, plugin: Plugin) -> None:
    """Register the three functions of a plugin; TensorRT reads its inputs and attributes from their signatures."""
    kinds = _Types(trt)
    count = len(plugin.inputs)
    identifier = f"{NAMESPACE}::{plugin.name}"
    outputs: dict[str, Any] = {"outputs": tuple[trtp.TensorDesc]}

    def shapes_of(descs: Any) -> dict[str, tuple[Extent, ...]]:
        return {
            name: tuple(_known(extent) for extent in desc.shape_expr)
            for name, desc in zip(plugin.inputs, descs, strict=True)
        }

    def describe(*descs: Any, **_: Any) -> tuple[Any, ...]:
        sizes = plugin.sizes(shapes_of(descs))
        feature = descs[0].dtype
        return tuple(
            trtp.from_shape_expr(shape(sizes), feature if name in FEATURE_MAPS else trt.DataType.FLOAT)
            for name, shape in plugin.outputs.items()
        )

    def combine(*given: Any) -> list[Any]:
        descs, results = given[:count], given[count]
        # Symbolic shapes belong to other steps of a build, so only the channels are checked here.
        for name, desc in zip(plugin.inputs, descs, strict=True):
            if name in FEATURE_MAPS:
                _check_channels(plugin, kinds.dtype(plugin, desc), desc.shape[1])
        words = kinds.combination(plugin, [*plugin.inputs, *plugin.outputs], [*descs, *results])
        return [trtp.AutoTuneCombination(*words, list(plugin.tactics))]

    def implement(*given: Any) -> tuple[Any, ...]:
        descs, values, tactic = given[:count], given[count:-2], given[-1]
        dtypes = {name: kinds.dtype(plugin, desc) for name, desc in zip(plugin.inputs, descs, strict=True)}
        architecture = _building_for[0]
        with assumed(architecture):
            launch = plugin.launch(shapes_of(descs), dtypes, dict(zip(plugin.attributes, values, strict=True)), tactic)
        kernel = assemble(launch.signature, architecture, plugin.inputs, tuple(plugin.outputs))
        return _answer(trtp, launch, kernel)

    answer = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    descriptions = types.GenericAlias(tuple, (trtp.TensorDesc,) * len(plugin.outputs))
    for function, signature in (
        (describe, _signature(trtp, plugin, plugin.attributes, descriptions)),
        (combine, _signature(trtp, plugin, outputs, list[trtp.AutoTuneCombination])),
        (implement, _signature(trtp, plugin, {**plugin.attributes, **outputs, "tactic": int}, answer)),
    ):
        vars(function)["__signature__"] = signature
    trtp.register(identifier)(describe)
    trtp.autotune(identifier)(combine)
    trtp.aot_impl(identifier)(implement)


def _answer(trtp: Any, launch: PluginLaunch, kernel: Assembly) -> tuple[Any, ...]:
    """Convert a launch to the values that TensorRT expects from an implementation."""
    axes = dict(zip(("grid_x", "grid_y", "grid_z"), launch.grid, strict=False))
    parameters = trtp.KernelLaunchParams(**axes, block_x=kernel.threads, shared_mem=kernel.shared)
    extras = trtp.SymIntExprs(len(kernel.integers))
    for place, name in enumerate(kernel.integers):
        extras[place] = trtp.SymInt32(launch.integers[name])
    return kernel.name, kernel.ptx, parameters, extras
