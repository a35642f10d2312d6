"""The machine that `benchmarks.gpu` runs on: its properties, its best rates, and timing."""

from __future__ import annotations

import gc
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import triton

from dmfnet_fast.engines.arithmetic import arithmetic

OLDEST = (8, 0)  # compute capability that the kernels need
FEWEST_ROUNDS, MOST_ROUNDS = 3, 100  # per measurement
SECONDS = 0.5  # target duration of a measurement
COPIED = 2**31  # bytes of the copy that measures bandwidth
MATRIX = 8192  # rows and columns of the product that measures arithmetic
# Smaller sizes for the interpreter, on a CPU.
INTERPRETED_COPIED, INTERPRETED_MATRIX, INTERPRETED_L2 = 2**20, 64, 2**14


@dataclass(frozen=True)
class Times:
    """Times of one call, in milliseconds.

    Attributes:
        median, least: median and minimum over all rounds.
        spread: interquartile range.
        rounds: number of rounds.
        interpreted: whether the times are those of Triton's interpreter on a CPU, and tell nothing about a GPU.
    """

    median: float
    least: float
    spread: float
    rounds: int
    interpreted: bool

    @classmethod
    def of(cls, samples: Sequence[float], interpreted: bool) -> Times:
        quarters = statistics.quantiles(samples, n=4) if len(samples) > 1 else [0.0, 0.0, 0.0]
        return cls(statistics.median(samples), min(samples), quarters[2] - quarters[0], len(samples), interpreted)

    def to_dict(self) -> dict[str, Any]:
        result = {"ms": self.median, "min_ms": self.least, "iqr_ms": self.spread, "rounds": self.rounds}
        return result | ({"interpreted": True} if self.interpreted else {})


@dataclass
class Machine:
    """The device that everything runs on.

    Attributes:
        device: a GPU, or the CPU in Triton's interpreter.
        interpreted: whether Triton interprets its kernels.
        l2: bytes of L2 cache.
        copy_rate: bytes read and written per second by a large copy on the device; 0 until measured.
        matrix_rates: FLOP/s of a large matrix product, by precision; empty until measured.
    """

    device: torch.device
    interpreted: bool
    l2: int
    copy_rate: float = 0.0
    matrix_rates: dict[str, float] = field(default_factory=dict)

    @property
    def architecture(self) -> int:
        """Compute capability times ten; in the interpreter, the oldest that the kernels support."""
        if self.interpreted:
            return 10 * OLDEST[0] + OLDEST[1]
        major, minor = torch.cuda.get_device_capability(self.device)
        return 10 * major + minor

    def _samples(self, launch: Callable[[], object], stream: Any, rounds: int) -> list[float]:
        """Times `rounds` launches, each in milliseconds."""
        if self.interpreted:
            samples = []
            for _ in range(rounds):
                start = time.perf_counter()
                launch()
                samples.append(1e3 * (time.perf_counter() - start))
            return samples
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
        for first, last in events:
            first.record(stream)
            launch()
            last.record(stream)
        torch.cuda.synchronize(self.device)
        return [first.elapsed_time(last) for first, last in events]

    def time(self, launch: Callable[[], object], stream: Any = None) -> Times:
        """Times `launch`, which must have been called before, for about SECONDS.

        Args:
            launch: puts work on `stream`, possibly without waiting for it.
            stream: the current stream by default.
        """
        if self.interpreted:
            return Times.of(self._samples(launch, None, 1), True)
        stream = stream or torch.cuda.current_stream(self.device)
        once = min(self._samples(launch, stream, 2))
        rounds = min(max(round(1e3 * SECONDS / max(once, 1e-3)), FEWEST_ROUNDS), MOST_ROUNDS)
        return Times.of(self._samples(launch, stream, rounds), False)

    def time_over(self, call: Callable[..., Any], inputs: Sequence[Sequence[Any]]) -> Times:
        """Times one call `call(*arguments)`, averaged over all arguments in `inputs`, launched as one CUDA graph.

        Every call has its own memory for results, so that none finds an earlier call's results in the cache.
        """
        if self.interpreted:
            return self.time(lambda: call(*inputs[0]))
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, chooses algorithms, creates library handles
                call(*inputs[0])
            stream.synchronize()
            with torch.cuda.graph(graph, stream=stream):
                kept = [call(*arguments) for arguments in inputs]
            graph.replay()
            times = self.time(graph.replay, stream)
        del kept
        number = len(inputs)
        return Times(times.median / number, times.least / number, times.spread / number, times.rounds, False)

    def free(self) -> tuple[int, int]:
        """Frees unused memory and resets peaks; returns the bytes that stay allocated and reserved."""
        gc.collect()
        if self.interpreted:
            return 0, 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)

    def works(self) -> bool:
        """Whether the device still works: after an out-of-bounds access, a GPU fails all later calls of the process."""
        try:
            return bool(torch.ones(1, device=self.device).item() == 1)
        except RuntimeError:
            return False

    def peak(self) -> tuple[int, int]:
        """Peak bytes allocated and reserved since `free`."""
        if self.interpreted:
            return 0, 0
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)


def find_machine() -> Machine | str:
    """Returns this machine's GPU, or its CPU in Triton's interpreter; otherwise a message that says why not."""
    if triton.knobs.runtime.interpret:
        return Machine(torch.device("cpu"), True, INTERPRETED_L2)
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA GPU; set TRITON_INTERPRET=1 to try the script without one"
    device = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.get_device_capability(device) < OLDEST:
        return f"{torch.cuda.get_device_name(device)}: the kernels need compute capability 8.0 or later"
    return Machine(device, False, torch.cuda.get_device_properties(device).L2_cache_size)


def _driver() -> str | None:
    """Version of the driver, or None if nvidia-smi does not report it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return process.stdout.split("\n")[0].strip() if process.returncode == 0 else None


def environment(machine: Machine) -> dict[str, Any]:
    """Properties that determine the machine's speed, without any that identify its owner."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "numpy": np.__version__,
    }
    if machine.interpreted:
        return versions
    properties = torch.cuda.get_device_properties(machine.device)
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": machine.l2,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **versions,
    }


def measure_ceilings(machine: Machine) -> dict[str, Any]:
    """Measures the machine's best rates and stores them in `machine`, on random data because zeros can run faster."""
    size = INTERPRETED_COPIED if machine.interpreted else COPIED
    source = torch.randint(-(2**62), 2**62, (size // 8,), device=machine.device)
    target = torch.empty_like(source)
    target.copy_(source)
    copy = machine.time(partial(target.copy_, source))
    machine.copy_rate = 2 * size / copy.median * 1e3
    result: dict[str, Any] = {"copy": {"bytes_per_second": machine.copy_rate, "bytes": 2 * size, **copy.to_dict()}}
    del source, target

    rows = INTERPRETED_MATRIX if machine.interpreted else MATRIX
    kinds = (
        ("float16", torch.float16, False),
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    )
    for name, dtype, tf32 in kinds:
        a, b = (torch.randn(rows, rows, device=machine.device).to(dtype) for _ in range(2))
        with arithmetic(tf32=tf32):
            times = machine.time(partial(torch.mm, a, b, out=torch.mm(a, b)))
        machine.matrix_rates[name] = 2 * rows**3 / times.median * 1e3
        result[name] = {"flop_per_second": machine.matrix_rates[name], "rows": rows, **times.to_dict()}
    return result
