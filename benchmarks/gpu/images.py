"""Whole calls of `Fuser.fuse` on a GPU: 8-bit arrays in, 8-bit arrays out, timed on the host."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from benchmarks.gpu.machine import Machine
from dmfnet_fast import Fuser
from dmfnet_fast.engines import shipped
from dmfnet_fast.phantom import make_phantom

SIZE = 256
CALLS, WARM_UPS = 100, 5
ALL_ON_GPU, RULES_ON_CPU = "pixels to pixels in one CUDA graph", "rules on the CPU"
BY_KERNELS = "pixels to pixels in one CUDA graph, by our kernels"
VARIANTS = (ALL_ON_GPU, RULES_ON_CPU, BY_KERNELS)


def rows(machine: Machine) -> list[tuple[str, str]]:
    """Networks and variants to measure; none in Triton's interpreter."""
    return [] if machine.interpreted else [(name, variant) for name in shipped() for variant in VARIANTS]


def measure(name: str, variant: str) -> dict[str, Any]:
    """One row: milliseconds of a call, and whether the pixels are those of the rules on the CPU, or on the GPU."""
    head = make_phantom(0, SIZE)
    mri, other = head.mri, head.other("PET")
    with Fuser(shipped()[name], device="cuda") as fuser:
        engine: Any = fuser._engine
        images = []
        for on_gpu in (variant == RULES_ON_CPU, variant != RULES_ON_CPU):
            engine.takes_pixels, engine.pixels_by_kernels = on_gpu, variant == BY_KERNELS
            images.append(fuser.fuse(mri, other))
        times = []
        for call in range(WARM_UPS + CALLS):
            begun = time.perf_counter()
            fuser.fuse(mri, other)
            if call >= WARM_UPS:
                times.append(1e3 * (time.perf_counter() - begun))
    first, _, third = statistics.quantiles(times, n=4)
    same = bool(np.array_equal(*images))
    return {"ms": statistics.median(times), "min_ms": min(times), "iqr_ms": third - first, "within": same}
