"""Whole fusions on a GPU: each way to fuse, checked, then timed beside the published one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.networks import CASES, INTERPRETED_CASE, Array, Case, Networks, Quality
from benchmarks.variants import Published, as_trained
from dmfnet_fast.engines.arithmetic import arithmetic
from dmfnet_fast.engines.cuda_graph import CapturedFusion
from dmfnet_fast.model.layout import store_channels_last

Forward: TypeAlias = Callable[..., Tensor]

# Before memory is counted and time taken: algorithms are chosen, compiled graphs are recorded at the second fusion.
SETTLING = 3


@dataclass
class Running:
    """A network with the inputs of a case.

    Attributes:
        launch: fuses them; need not wait for the GPU.
        image: fuses them and returns the images.
        stream: that `launch` uses; None is the current one.
    """

    launch: Callable[[], object]
    image: Callable[[], Array]
    stream: Any = None


@dataclass(frozen=True)
class Variant:
    """A way to fuse.

    Attributes:
        name: what is done.
        precision: of the arithmetic, a key of LIMITS.
        build: makes a forward, which takes its inputs by name, on the machine's device from the network of a name.
        compiled: the mode of torch.compile, if it is used.
        captured: in a CUDA graph, as the engine has it.
        benchmark, deterministic: as in `arithmetic`.
    """

    name: str
    precision: str
    build: Callable[[Networks, str], Forward]
    compiled: str | None = None
    captured: bool = False
    benchmark: bool = False
    deterministic: bool = False

    @contextmanager
    def arranged(self) -> Iterator[None]:
        """Meanwhile it may be built and called; afterwards what it compiled is given back."""
        with arithmetic(self.precision == "tf32", self.benchmark, self.deterministic):
            try:
                yield
            finally:
                if self.compiled:
                    torch.compiler.reset()


def _published(half: bool, compiled: str | None = None) -> Callable[[Networks, str], Forward]:
    """As published; `half`: channels-last, under float16 autocast."""

    def build(networks: Networks, name: str) -> Forward:
        device = networks.machine.device
        net = as_trained(networks.trained(name)).to(device)
        if half:
            store_channels_last(net)
        if compiled and isinstance(net, Published):
            net.one_pass = torch.compile(net.one_pass, mode=compiled, dynamic=False)
            net.fusion.compile(mode=compiled, dynamic=False)
        elif compiled:
            net.compile(mode=compiled, dynamic=False)

        def forward(**tensors: Tensor) -> Tensor:
            if compiled:
                # Six passes are one step: a graph may not write over the features that the fusion still needs.
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(device.type, torch.float16, enabled=half):
                return net(**tensors)

        return forward

    return build


def _ours(kernels: bool) -> Callable[[Networks, str], Forward]:
    return lambda networks, name: networks.optimized(name, "float16", kernels)


def _compiled(mode: str) -> Variant:
    name = "published, torch.compile" + ("" if mode == "default" else f" {mode}")
    return Variant(f"{name}, autocast, channels last", "float16", _published(True, mode), compiled=mode)


PUBLISHED = Variant("published, eager", "float32", _published(False))
KERNELS_LAUNCHED = Variant("kernels, launched", "float16", _ours(True), deterministic=True)
KERNELS_CAPTURED = Variant("kernels, CUDA graph", "float16", _ours(True), captured=True, deterministic=True)
AUTOCAST = Variant(
    "published, eager, autocast, channels last, cudnn.benchmark", "float16", _published(True), benchmark=True
)
IMMEDIATE = (
    KERNELS_CAPTURED,
    PUBLISHED,
    Variant("published, eager, TF32", "tf32", _published(False)),
    AUTOCAST,
    Variant("optimized, launched", "float16", _ours(False), deterministic=True),
    KERNELS_LAUNCHED,
    Variant("kernels, CUDA graph, cudnn.benchmark", "float16", _ours(True), captured=True, benchmark=True),
    Variant("optimized, CUDA graph", "float16", _ours(False), captured=True, deterministic=True),
)
COMPILED, TUNED = _compiled("reduce-overhead"), _compiled("max-autotune")
TELLING = (KERNELS_CAPTURED, PUBLISHED, AUTOCAST)  # of larger cases
FIRST, THROUGHPUT = 3, 4  # of CASES: one pair at 256x256, then several
MOST_TELLING = FIRST * len(IMMEDIATE) + 1  # rows that are done first
TELLING_TOO = MOST_TELLING + THROUGHPUT * len(TELLING)  # and next


def rows(machine: Machine) -> list[tuple[Case, Variant]]:
    """All rows, the most telling first: compiling takes a minute, tuning several."""
    if machine.interpreted:
        variants = [way for way in IMMEDIATE if not way.captured and way.precision != "tf32"]
        return [(INTERPRETED_CASE, way) for way in variants]
    first, others = CASES[:FIRST], CASES[FIRST:]
    return [
        *((case, way) for case in first for way in IMMEDIATE),
        (first[0], COMPILED),
        *((case, way) for case in others[:THROUGHPUT] for way in TELLING),
        *((case, COMPILED) for case in first[1:]),
        *((case, way) for case in others[THROUGHPUT:] for way in TELLING),
        *((case, COMPILED) for case in others),
        *((case, TUNED) for case in CASES),
    ]


def start(way: Variant, case: Case, networks: Networks) -> Running:
    """Build, capture or compile; call it, and use the result, under `way.arranged()`."""
    arrays = networks.inputs(case)
    forward = way.build(networks, case.network)
    if way.captured:
        captured = CapturedFusion(forward, {name: x.shape for name, x in arrays.items()}, networks.machine.device)
        return Running(captured.replay, lambda: captured.run(arrays), captured.stream)
    tensors = networks.tensors(arrays)

    def launch() -> Tensor:
        with torch.inference_mode():
            return forward(**tensors)

    running = Running(launch, lambda: launch().cpu().numpy())
    for _ in range(1 if networks.machine.interpreted else SETTLING):
        running.image()
    return running


def measure(way: Variant, case: Case, networks: Networks) -> dict[str, Any]:
    """One row: quality, memory and, unless the image is wrong, time.

    Memory is what is allocated and what is reserved at most, beyond what was before the network was built. A captured
    network's includes the capture, as a replay allocates nothing, and what cuDNN tried in its benchmark.
    """
    machine = networks.machine
    reference = networks.reference(case)
    before = machine.free()
    with way.arranged():
        running = start(way, case, networks)
        if not way.captured:
            machine.free()
        quality = Quality.of(way.precision, [running.image()], [reference])
        megabytes = [(most - least) / 2**20 for most, least in zip(machine.peak(), before, strict=True)]
        row: dict[str, Any] = quality.to_dict()
        if not machine.interpreted:
            row |= {"peak_mb": megabytes[0], "reserved_mb": megabytes[1]}
        if not quality.within:
            return row | {"refused": f"wrong: {quality}"}
        times = machine.time(running.launch, running.stream)
    return row | times.to_dict() | {"of_floor": times.median / networks.floor(case)}


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Put into every row that has a time its ratio to the published way's in the same case, if that has one."""
    published: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if "ms" in row:
            case = row["network"], row["size"], row["batch"]
            if row["way"] == PUBLISHED.name:
                published[case] = row["ms"]
            row["ratio"] = row["ms"] / published[case] if case in published else None
