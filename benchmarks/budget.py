"""Memory traffic and arithmetic of a fusion, at least and in eager PyTorch: `python -m benchmarks.budget`.

Counted, not measured: the network runs on the meta device, where tensors have shapes and layouts but no values, and
every launch that PyTorch would make on a CUDA GPU is recorded. Prints Markdown; with --write it replaces the text
between the markers in kernels/README.md.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from dmfnet_fast.artifacts.interface import interface_of
from dmfnet_fast.model import network_of, optimize, preset
from kernels.cases import OPERATIONS
from kernels.cases.record import Operation
from kernels.launch import assumed

README = Path(__file__).parent.parent / "kernels" / "README.md"
BEGIN, END = "<!-- budget -->", "<!-- /budget -->"
aten = torch.ops.aten
# The meta device has no autocast.
NO_AUTOCAST = mock.patch.object(torch, "autocast", return_value=nullcontext())
OTHERS = ("tiny", "turbo", "nano")
BY_NAME = {operation.name: operation for operation in OPERATIONS}
TUNED = 90  # whose rules say which convolutions are ours


@dataclass(frozen=True)
class Machine:
    """Memory bandwidth in bytes/s and half-precision FLOP/s that a good kernel reaches."""

    bytes: float
    flop: float

    def seconds(self, moved: float, flop: float) -> float:
        return max(moved / self.bytes, flop / self.flop)


H100 = Machine(3.0e12, 790e12)  # both measured
ORIN = Machine(204e9, 42e12)  # data sheet, dense

# Ends of layer names, as patterns, whose layers are computed by one operation, and the end of that operation's name.
JOINED = {
    r"denoiser\.init_conv": "diffusion",
    r"conv_(x|skip)": "conv1",
    r"norms\.\d": "norm1",
    r"shortcuts\.\d": "shortcut",
    r"projections\.\d": "projections",
    r"(rgb_decode\d)\.conv": r"\1",
}
# Rows by a pattern for a launch's operation and kind; the first match counts.
ROWS = {
    r"^diffusion ": "diffusion and first convolution",
    r"\.norm\d ": "GroupNorm and SiLU, {size}",
    r"\.attention ": "attention",
    r"\.conv1 bias": "noise bias",
    r"^denoiser\S+ bias": "bias of another denoiser convolution",
    r"\.(conv1|shortcut) add|\.joint ": "joint of path and skip (sum of two convolutions, or concatenation)",
    r"^denoiser\S+ add": "residual add",
    r"\.(shortcut|res_conv) convolution": "1x1 shortcut",
    r"\.conv[12] convolution": "3x3 convolution, {size}",
    r"\.downs\.\d+\.conv convolution": "downsampling convolution",
    r"\.ups\.\d+\.conv convolution": "upsampling (transposed convolution)",
    r"\.projections ": "timestep merge (1x1 convolutions, sum, ReLU)",
    r"\.att ": "fusion gate (adaptive attention fusion)",
    r"\.upsample_\d+ ": "bilinear upsampling, with sum or ReLU",
    r"\.rgb_decode\d ": "head and tanh",
    r"^fusion\S+ convolution": "fusion convolution",
    r"^fusion\S+ ": "bias, ReLU and sum after a fusion convolution",
    r"^(first|blocks\.\d+\.\d|last) convolution": "student's convolution",
    r"^(first|blocks\.\d+\.\d|last) ": "bias, ReLU and sum after a student's convolution",
}


def storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@dataclass
class Launch:
    """A kernel launch of eager PyTorch.

    Attributes:
        operation: name of the fused operation that would contain it, after its module; the same in every pass.
        kind: name of the operator, or of a part of one, such as "copy", "bias" or "statistics".
        inputs, outputs: tensors that it reads and writes.
        flop: arithmetic, multiply-adds counted as two.
    """

    operation: str
    kind: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    flop: float = 0

    @property
    def row(self) -> str:
        row = next(row for pattern, row in ROWS.items() if re.search(pattern, f"{self.operation} {self.kind}"))
        width = self.inputs[0].shape[-1] if "{size}" in row else 0
        return row.format(size=f"{width}x{width}" if width >= 128 else "64x64 and smaller")


class Recorder(TorchDispatchMode):
    """Records the launches of `net` on the meta device, and gives tensors the layouts that they have on CUDA."""

    def __init__(self, net: nn.Module, modules: ModuleTracker) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.parameters = {storage(x): name for name, x in chain(net.named_parameters(), net.named_buffers())}
        self._modules = modules
        self._writers: dict[int, int] = {}  # by storage, the index of the launch that wrote it last

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = ([x for x in tree_leaves(part) if isinstance(x, Tensor)] for part in ((args, kwargs), out))
        if {storage(x) for x in outputs} <= {storage(x) for x in inputs}:
            return out  # a view
        packet = func.overloadpacket
        operation = self._operation(packet, inputs)
        if packet is aten.convolution:
            # cuDNN works in channels-last if the input or the weight is; ATen adds the bias in another pass.
            formats = [suggest_memory_format(x) for x in inputs[:2]]
            layout = torch.channels_last if torch.channels_last in formats else torch.contiguous_format
            x, out = self._copied(inputs[0], layout, self._writer(inputs)), out.contiguous(memory_format=layout)
            flop = flop_registry[packet](*args, out_val=out)
            self._log(Launch(operation, "convolution", [x, inputs[1]], [out], flop))
            if args[2] is not None:
                self._log(Launch(operation, "bias", [out, args[2]], [out]))
        elif packet is aten.native_group_norm:
            # CUDA's GroupNorm makes its input contiguous (NCHW), then reads it for the statistics and to apply them.
            x, result = self._copied(inputs[0], torch.contiguous_format, operation), out[0].contiguous()
            self._log(Launch(operation, "statistics", [x], []))
            self._log(Launch(operation, "apply", [x, *inputs[1:]], [result]))
            return (result, *out[1:])
        elif packet is aten.reflection_pad2d:
            # On CUDA, input and output are contiguous as well.
            x, out = self._copied(inputs[0], torch.contiguous_format, operation), out.contiguous()
            self._log(Launch(operation, "pad", [x], [out]))
        else:
            flop = flop_registry[packet](*args, out_val=out) if packet in flop_registry else 0
            self._log(Launch(operation, packet.__name__, inputs, outputs[:1], flop))
        return out

    def _log(self, launch: Launch) -> None:
        self._writers |= {storage(x): len(self.launches) for x in launch.outputs}
        self.launches.append(launch)

    def _copied(self, x: Tensor, layout: torch.memory_format, operation: str) -> Tensor:
        if x.is_contiguous(memory_format=layout):
            return x
        copy = x.contiguous(memory_format=layout)
        self._log(Launch(operation, "copy", [x], [copy]))
        return copy

    def _writer(self, inputs: Sequence[Tensor]) -> str:
        """The operation that wrote the newest input; the network's own inputs belong to the diffusion."""
        newest = max(self._writers.get(storage(x), -1) for x in inputs)
        return self.launches[newest].operation if newest >= 0 else "diffusion"

    def _operation(self, packet: Any, inputs: Sequence[Tensor]) -> str:
        """Layers start operations; other operators belong to the operation whose result they read."""
        module = max(self._modules.parents, key=len).partition(".")[2]
        if whole := re.match(r".*\.(attention|att)\b", module):
            return whole[0]
        if packet in (aten.convolution, aten.native_group_norm, aten.clone):
            # A GroupNorm's input is cloned before the operator. Some convolutions are called without their modules, and
            # only their weights tell which layer they are.
            name = module if packet is aten.clone else self.parameters[storage(inputs[1])].removesuffix(".weight")
            for layers, joined in JOINED.items():
                name = re.sub(f"{layers}$", joined, name)
            return name
        if packet is aten.upsample_bilinear2d:
            return f"{module}.upsample_{inputs[0].shape[-1]}"
        if packet is aten.cat and module:
            return f"{module}.joint"
        if packet is aten._to_copy and module == "fusion":
            return "fusion.rgb_decode1"  # not the writer's operation, whose result is half precision
        return self._writer(inputs)


def products(operation: Operation, arguments: Sequence[Any]) -> float:
    """Operations of the convolutions or matrix products in one of our operators, multiply-adds counted as two."""
    return operation.work([list(value.shape) for value in arguments if isinstance(value, Tensor)]).flop


class KernelRecorder(TorchDispatchMode):
    """Totals the launches of a network on our kernels; each reads its inputs once and writes its results once."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.bytes = 0.0
        self.flop = 0.0
        self.seconds = 0.0  # on an H100

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        namespace, _, name = func.name().partition("::")
        if namespace == "dmfnet":
            flop = products(BY_NAME[name], args)
            for launch in BY_NAME[name].plan(*args)[1]:  # of those with products there is one
                self._add(sum(x.nbytes for x in launch.tensors), flop)
            return out
        inputs, outputs = ([x for x in tree_leaves(part) if isinstance(x, Tensor)] for part in ((args, kwargs), out))
        in_place = func._schema.is_mutable
        if in_place or not {storage(x) for x in outputs} <= {storage(x) for x in inputs}:
            # The flop counter does not know the in-place product, which computes the same.
            packet = aten.addmm if func.overloadpacket is aten.addmm_ else func.overloadpacket
            flop = flop_registry[packet](*args, out_val=out) if packet in flop_registry else 0
            self._add(sum(x.nbytes for x in (*inputs, *outputs)), flop)
        return out

    def _add(self, moved: float, flop: float) -> None:
        self.launches += 1
        self.bytes += moved
        self.flop += flop
        self.seconds += H100.seconds(moved, flop)


def record(name: str = "base", size: int = 256) -> Recorder:
    """Records one fusion of a size x size pair by the optimized network `name` in float16."""

    def attention(*tensors: Tensor) -> Tensor:
        return aten._scaled_dot_product_flash_attention(*tensors)[0]

    # The meta device would not choose the fused attention, as CUDA does.
    fused = mock.patch.object(F, "scaled_dot_product_attention", attention)
    with torch.device("meta"), torch.no_grad(), NO_AUTOCAST, fused:
        net = optimize(network_of(preset(name)), "float16", together=True)
        inputs = _inputs(name, size)
        with ModuleTracker() as modules, Recorder(net, modules) as recorder:
            net(**inputs)
    return recorder


def record_kernels(own: bool, name: str = "base", size: int = 256) -> KernelRecorder:
    """Like `record`, for the network on our kernels.

    Args:
        own: use our convolutions where they were measured to be faster, instead of cuDNN's everywhere.
        name: preset of the network.
        size: height and width of the pair.
    """
    planned_for = assumed(TUNED) if own else nullcontext()
    with torch.device("meta"), torch.no_grad(), NO_AUTOCAST, planned_for:
        net = optimize(network_of(preset(name)), "float16", kernels=True)
        inputs = _inputs(name, size)
        with KernelRecorder() as recorder:
            net(**inputs)
    return recorder


def _inputs(name: str, size: int) -> dict[str, Tensor]:
    shapes = interface_of(preset(name).to_dict()).shapes(1, size, size)
    return {label: torch.empty(shape) for label, shape in shapes.items()}


@dataclass
class Row:
    """Least cost of all operations in one row of the table, and their cost in eager PyTorch."""

    least: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # bytes, by operation
    flop: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    eager_bytes: float = 0
    eager: float = 0  # seconds on an H100

    def floor(self, machine: Machine) -> float:
        """Seconds at the machine's rates."""
        return sum(machine.seconds(moved, self.flop[operation]) for operation, moved in self.least.items())

    @property
    def saving(self) -> float:
        return self.eager - self.floor(H100)

    @property
    def numbers(self) -> list[float]:
        """The columns of the table."""
        gflop, least = sum(self.flop.values()) / 1e9, sum(self.least.values()) / 1e6
        floors = [1e6 * self.floor(machine) for machine in (H100, ORIN)]
        return [len(self.least), gflop, least, *floors, self.eager_bytes / 1e6, 1e6 * self.eager, 1e6 * self.saving]


def count(recorder: Recorder) -> dict[str, Row]:
    """Rows by name, the largest saving first.

    An operation reads its weights and other operations' results once, and writes once what other operations read. An
    epilogue's reads are in its own row, its writes in that of its convolution. Eager launches read weights only in the
    first pass.
    """
    rows: dict[str, Row] = defaultdict(Row)
    first: dict[str, Row] = {}
    readers: dict[int, set[str]] = defaultdict(set)
    writers: dict[int, set[str]] = defaultdict(set)
    for launch in recorder.launches:
        first.setdefault(launch.operation, rows[launch.row])
        for tensors, users in ((launch.inputs, readers), (launch.outputs, writers)):
            for x in tensors:
                users[storage(x)].add(launch.operation)

    read: set[tuple[str, int, int]] = set()
    written: set[int] = set()
    for launch in recorder.launches:
        row, operation = rows[launch.row], launch.operation
        row.flop[operation] += launch.flop
        row.least[operation] += 0  # counts the operation even if it moves nothing
        moved = sum(x.nbytes for x in launch.outputs)
        for x in launch.inputs:
            part = operation, storage(x), int(x.storage_offset())
            if part not in read or storage(x) not in recorder.parameters:
                moved += x.nbytes
            if part not in read and operation not in writers[storage(x)]:
                row.least[operation] += x.nbytes
            read.add(part)
        for x in launch.outputs:
            if storage(x) not in written and readers[storage(x)] != {operation}:
                first[operation].least[operation] += x.nbytes
            written.add(storage(x))
        row.eager_bytes += moved
        row.eager += H100.seconds(moved, launch.flop)
    return dict(sorted(rows.items(), key=lambda item: -item[1].saving))


def markdown(recorder: Recorder) -> str:
    """The table, a summary, and the table of smaller networks."""
    rows = count(recorder)
    cudnn, ours = (record_kernels(own) for own in (False, True))
    cells = {name: row.numbers for name, row in rows.items()}
    cells["**total**"] = total = [sum(column) for column in zip(*cells.values(), strict=True)]
    heads = "number | GFLOP | least MB | floor, H100 µs | floor, Orin µs | eager MB | eager, H100 µs | saving µs"
    lines = [f"| operation | {heads} |", "| --- " + "| ---: " * 8 + "|"]
    for name, (number, gflop, *rest) in cells.items():
        lines.append(f"| {name} | {number:.0f} | {gflop:.1f} | {' | '.join(str(round(value)) for value in rest)} |")

    _, gflop, least, h100, orin, moved, eager, saving = total
    computing = [sum(row[column] for row in cells.values() if row[1]) - total[column] for column in (3, 4)]
    norms = [sum(row[n] for name, row in cells.items() if name.startswith("GroupNorm")) for n in range(8)]
    text = (
        f"The floor is {h100 / 1e3:.1f} ms on an H100 and {orin / 1e3:.0f} ms on an Orin. Rows with arithmetic are "
        f"{computing[0] / h100:.0%} and {computing[1] / orin:.0%} of it; if memory were free, they would take "
        f"{1e12 * gflop / H100.flop:.1f} and {1e12 * gflop / ORIN.flop:.0f} ms. Eager PyTorch moves "
        f"{moved / 1e3:.1f} GB in {len(recorder.launches)} launches where {least / 1e3:.1f} GB would suffice: "
        f"{eager / 1e3:.1f} ms at the H100's rates. GroupNorm and SiLU are {norms[-1] / saving:.0%} of the saving; if "
        f"the next convolution computed them while loading its input, their floor of {norms[3] / 1e3:.1f} ms on an "
        f"H100 and {norms[4] / 1e3:.0f} ms on an Orin would vanish too.\n\nThe network on our kernels, counted in the "
        f"same way: with cuDNN's convolutions, {_totals(cudnn)}; with our own where compute capability {TUNED / 10} "
        f"uses them, {_totals(ours)}. Ours include a block's shortcuts, which are separate operations in the floor."
    )
    return "\n".join([*lines, "", text, "", *_others()])


def _totals(ours: KernelRecorder) -> str:
    return f"{ours.bytes / 1e9:.2f} GB in {ours.launches} launches, {1e3 * ours.seconds:.1f} ms"


def _others() -> Iterator[str]:
    """Table of the smaller networks, one per row. With cuDNN's convolutions, a student runs PyTorch's operators."""
    yield "Smaller networks, counted in the same way; on our kernels with cuDNN's convolutions, and with our own:"
    yield ""
    heads = "GFLOP | floor, H100 µs | floor, Orin µs | eager launches | eager, H100 µs"
    heads += " | launches, cuDNN | H100 µs, cuDNN | launches, own | H100 µs, own"
    yield f"| network | {heads} |"
    yield "| --- " + "| ---: " * 9 + "|"
    for name in OTHERS:
        recorder = record(name)
        variants = [record_kernels(own, name) for own in (False, True)]
        columns = zip(*(row.numbers for row in count(recorder).values()), strict=True)
        _, gflop, _, h100, orin, _, eager, _ = (sum(column) for column in columns)
        ours = [number for variant in variants for number in (variant.launches, 1e6 * variant.seconds)]
        numbers = (h100, orin, len(recorder.launches), eager, *ours)
        yield f"| {name} | {gflop:.1f} | {' | '.join(str(round(value)) for value in numbers)} |"


def main() -> None:
    """Prints the budget, or with --write, writes it into kernels/README.md."""
    text = markdown(record())
    if sys.argv[1:] != ["--write"]:
        print(text)
        return
    before, begin, rest = README.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{README}: has no {BEGIN} with {END} after it")
    README.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
