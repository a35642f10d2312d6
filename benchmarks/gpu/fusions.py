"""Whole fusions on a GPU: each variant is checked, then timed and compared with the published network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.networks import BATCHES, INTERPRETED_CASE, LARGE, SINGLE_PAIRS, Array, Case, Networks, Quality
from benchmarks.variants import Published, as_trained
from dmfnet_fast.engines.arithmetic import arithmetic
from dmfnet_fast.engines.cuda_graph import CapturedFusion
from dmfnet_fast.model.layout import store_channels_last

Forward: TypeAlias = Callable[..., Tensor]

# Fusions before memory and time are measured: the first chooses algorithms, the second records compiled graphs.
SETTLING = 3


@dataclass
class Running:
    """A network with the inputs of a case.

    Attributes:
        launch: fuses the inputs, possibly without waiting for the GPU.
        image: fuses the inputs and returns the images.
        stream: the stream that `launch` uses; None for the current one.
    """

    launch: Callable[[], object]
    image: Callable[[], Array]
    stream: Any = None


@dataclass(frozen=True)
class Variant:
    """A variant of the fusion.

    Attributes:
        name: description for tables.
        precision: precision of the arithmetic, a key of LIMITS.
        build: makes a forward function, which takes inputs by name, on the machine's device for a network's name.
        compiled: mode of torch.compile, if used.
        captured: whether it runs as a CUDA graph, like the engine.
        benchmark, deterministic: as in `arithmetic`.
        two_streams: whether a captured DM-FNet fuses beside its denoiser, on a second stream.
    """

    name: str
    precision: str
    build: Callable[[Networks, str], Forward]
    compiled: str | None = None
    captured: bool = False
    benchmark: bool = False
    deterministic: bool = False
    two_streams: bool = False

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Context in which the variant is built and called; compiled code is released on exit."""
        with arithmetic(self.precision == "tf32", self.benchmark, self.deterministic):
            try:
                yield
            finally:
                if self.compiled:
                    torch.compiler.reset()


def _published(half: bool, compiled: str | None = None) -> Callable[[Networks, str], Forward]:
    """The published network; with `half`, in channels-last memory under float16 autocast."""

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
                # All passes are one step: a graph must not overwrite features that the fusion still needs.
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
# The fusion levels beside the denoiser, which has not run on a GPU yet.
TWO_STREAMS = replace(KERNELS_CAPTURED, name="kernels, CUDA graph, two streams", two_streams=True)
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
# Of the networks with fusion levels; larger batches fill the GPU.
PARALLEL_CASES = tuple(case for case in (*SINGLE_PAIRS, *BATCHES) if case.network != "nano" and case.batch <= 8)
# Measured before the other sections.
FIRST_ROWS = len(SINGLE_PAIRS) * len(IMMEDIATE) + len(PARALLEL_CASES) + 1 + len(BATCHES) + len(LARGE)


def rows(machine: Machine) -> list[tuple[Case, Variant]]:
    """All rows, the most informative first: compilation takes a minute, autotuning several."""
    if machine.interpreted:
        variants = [each for each in IMMEDIATE if not each.captured and each.precision != "tf32"]
        return [(INTERPRETED_CASE, variant) for variant in variants]
    base, *others = SINGLE_PAIRS
    return [
        *((case, variant) for case in SINGLE_PAIRS for variant in IMMEDIATE),
        *((case, TWO_STREAMS) for case in PARALLEL_CASES),
        (base, COMPILED),
        *((case, KERNELS_CAPTURED) for case in (*BATCHES, *LARGE)),
        *((case, COMPILED) for case in others),
        (base, TUNED),
        *((case, variant) for case in (*BATCHES, *LARGE) for variant in (PUBLISHED, AUTOCAST)),
        *((case, TUNED) for case in others),
    ]


def start(variant: Variant, case: Case, networks: Networks) -> Running:
    """Builds, captures or compiles a variant. Call this, and use the result, within `variant.settings()`."""
    arrays = networks.inputs(case)
    forward = variant.build(networks, case.network)
    if variant.captured:
        device = networks.machine.device
        side = torch.cuda.Stream(device) if variant.two_streams else None
        captured = CapturedFusion(forward, {name: x.shape for name, x in arrays.items()}, device, side=side)
        return Running(captured.replay, lambda: captured.run(arrays), captured.stream)
    tensors = networks.tensors(arrays)

    def launch() -> Tensor:
        with torch.inference_mode():
            return forward(**tensors)

    running = Running(launch, lambda: launch().cpu().numpy())
    for _ in range(1 if networks.machine.interpreted else SETTLING):
        running.image()
    return running


def measure(variant: Variant, case: Case, networks: Networks) -> dict[str, Any]:
    """One row: quality, memory and, unless the image is wrong, time.

    Memory is the peak of allocated and of reserved memory above the level before the network was built. For a captured
    network, it includes the capture, because replays allocate nothing, and the workspaces of cuDNN's benchmark.
    """
    machine = networks.machine
    reference = networks.reference(case)
    before = machine.free()
    with variant.settings():
        running = start(variant, case, networks)
        if not variant.captured:
            machine.free()
        quality = Quality.of(variant.precision, [running.image()], [reference])
        megabytes = [(peak - base) / 2**20 for peak, base in zip(machine.peak(), before, strict=True)]
        row: dict[str, Any] = quality.to_dict()
        if not machine.interpreted:
            row |= {"peak_mb": megabytes[0], "reserved_mb": megabytes[1]}
        if not quality.within:
            return row | {"refused": f"wrong: {quality}"}
        times = machine.time(running.launch, running.stream)
    return row | times.to_dict() | {"of_floor": times.median / networks.floor(case)}


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Adds to every timed row its ratio to the published network's time in the same case, if that was timed."""
    published: dict[tuple[Any, ...], float] = {}
    for row in rows:
        if "ms" in row:
            case = row["network"], row["size"], row["batch"]
            if row["way"] == PUBLISHED.name:
                published[case] = row["ms"]
            row["ratio"] = row["ms"] / published[case] if case in published else None
