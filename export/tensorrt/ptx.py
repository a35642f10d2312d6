"""Kernels for TensorRT's ahead-of-time plugins: PTX with its parameters in TensorRT's order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dmfnet_fast.errors import EngineError
from kernels.compile import Signature

# Bytes that a block may use without opting in to more. Nothing documents that TensorRT opts in.
SHARED_MEMORY = 48 * 1024
_ALIGNED = 16
_WARP = 32
# The oldest PTX version that supports an architecture, so that every driver for that GPU reads the file; below 10.0,
# the version of CUDA 12.0. Source: release notes of the PTX ISA.
_OLDEST = 80
_PTX_VERSIONS = {100: 86, 101: 86, 103: 88, 110: 90, 120: 87, 121: 88}


@dataclass(frozen=True)
class Assembly:
    """A compiled kernel that TensorRT can launch.

    Attributes:
        name: name of the entry point.
        ptx: PTX code; its parameters are pointers to the inputs, then `integers`, then pointers to the outputs.
        integers: names of the 32-bit integer parameters.
        threads: threads per block.
        shared: bytes of shared memory per block.
    """

    name: str
    ptx: str
    integers: tuple[str, ...]
    threads: int
    shared: int


def reorder(ptx: str, entry: str, names: Sequence[str], order: Sequence[str]) -> str:
    """Declare the parameters of a PTX entry point in another order.

    The code reads its parameters by name, so moving the declarations moves the arguments. This depends only on the
    grammar of PTX; the alternative, a jitted wrapper, would have to be generated as source code for every signature.

    Args:
        ptx: PTX from Triton, which declares two pointers to scratch memory after the parameters `names`.
        entry: name of the kernel.
        names: names of its parameters in the order of their declaration.
        order: names in the new order, including all of `names`. Any other name becomes a pointer that is never read.
            The scratch pointers are removed.

    Raises:
        EngineError: the declared parameters are not the expected ones, or the code reads scratch memory.
    """
    found = re.search(rf"\.visible \.entry {re.escape(entry)}\((.*?)\)", ptx, re.DOTALL)
    declared = [] if found is None else [line.strip() for line in found[1].split(",")]
    if found is None or len(declared) != len(names) + 2 or set(names) - set(order):
        raise EngineError(f"{entry}: this release of Triton declares other parameters: {declared}")
    code = ptx[found.end() :]
    for line in declared[len(names) :]:
        if re.search(rf"\b{line.split()[-1]}\b", code):
            raise EngineError(f"{entry} reads scratch memory, which TensorRT does not give: update triton")
    lines = dict(zip(names, declared, strict=False))
    wanted = [lines.get(name, f".param .u64 .ptr .global .align 1 {entry}_{name}") for name in order]
    return ptx[: found.start(1)] + "\n\t" + ",\n\t".join(wanted) + "\n" + ptx[found.end(1) :]


@cache
def assemble(signature: Signature, architecture: int, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Assembly:
    """Compile a kernel for TensorRT.

    Args:
        signature: signature without runtime floats, which TensorRT cannot pass.
        architecture: compute capability times ten.
        inputs, outputs: names of the tensors in TensorRT's order. They are parameters of the kernel, except for inputs
            that are passed only for their shape.

    Raises:
        EngineError: the kernel needs something that TensorRT does not provide, such as scratch memory.
    """
    names = [name for name, _ in signature.types]
    types = {name: kind for name, kind in signature.types if kind != "constexpr"}
    integers = tuple(name for name, kind in types.items() if not kind.startswith("*"))
    if any(types[name] != "i32" for name in integers):
        raise EngineError(f"{signature.kernel.__name__}: TensorRT passes 32-bit integers only, not {types}")
    source = ASTSource(
        signature.kernel,
        dict(signature.types),
        dict(signature.constants),
        {(names.index(name),): [["tt.divisibility", _ALIGNED]] for name in signature.aligned},
    )
    version = _PTX_VERSIONS.get(architecture, None if architecture > 100 else _OLDEST)
    # A single stage keeps only one copy of the prefetched data, which takes less shared memory.
    for stages in (signature.stages, 1):
        options = {"num_warps": signature.warps, "num_stages": stages, "ptx_version": version}
        with triton.knobs.compilation.scope():
            # Line information would put paths of the build machine into the engine.
            triton.knobs.compilation.disable_line_info = True
            compiled = triton.compile(source, target=GPUTarget("cuda", architecture, _WARP), options=options)
        if compiled.metadata.shared <= SHARED_MEMORY:
            break
    else:
        raise EngineError(
            f"{compiled.metadata.name} takes {compiled.metadata.shared} bytes of shared memory, a plugin may take "
            f"{SHARED_MEMORY}: build without plugins"
        )
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise EngineError(f"{metadata.name} needs scratch memory, which TensorRT does not give: update triton")
    ptx = reorder(compiled.asm["ptx"], metadata.name, list(types), (*inputs, *integers, *outputs))
    return Assembly(metadata.name, ptx, integers, metadata.num_warps * _WARP, metadata.shared)
