"""Kernels as TensorRT's ahead-of-time plugins want them: PTX whose parameters are in TensorRT's order."""

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

# What a block may use without opting in, which TensorRT is not documented to do.
SHARED_MEMORY = 48 * 1024
_ALIGNED = 16
_WARP = 32
# The oldest PTX that knows an architecture, so that every driver which knows it reads the file; below 10.0, that of
# CUDA 12.0. From the release notes of the PTX ISA.
_OLDEST = 80
_PTX_VERSIONS = {100: 86, 101: 86, 103: 88, 110: 90, 120: 87, 121: 88}


@dataclass(frozen=True)
class Assembly:
    """A kernel to be launched by TensorRT.

    Attributes:
        name: of the entry.
        ptx: its assembly; the parameters are pointers to the inputs, `integers`, pointers to the outputs.
        integers: names of the 32-bit parameters.
        threads: of a block.
        shared: bytes of shared memory of a block.
    """

    name: str
    ptx: str
    integers: tuple[str, ...]
    threads: int
    shared: int


def reorder(ptx: str, entry: str, names: Sequence[str], order: Sequence[str]) -> str:
    """The PTX with the parameters of `entry` declared in another order.

    The code reads its parameters by name, so that moving the declarations moves the arguments. This depends on nothing
    but PTX's grammar; a jitted wrapper would have to be generated as source for every signature.

    Args:
        ptx: as Triton writes it: after the parameters `names` it declares two pointers to scratch memory.
        entry: name of the kernel.
        names: of its parameters, in the order in which they are declared.
        order: names in the order wanted. What is not among `names` becomes a pointer that nothing reads; scratch
            memory is left out.

    Raises:
        EngineError: the parameters are not what Triton declares, or scratch memory is read.
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
    """Compile for TensorRT.

    Args:
        signature: without runtime floats, which TensorRT cannot pass.
        architecture: compute capability times ten.
        inputs, outputs: names of the tensors in TensorRT's order: the kernel's parameters, and inputs that it does not
            take, given for their shape alone.

    Raises:
        EngineError: the kernel needs what TensorRT does not give.
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
    # With one stage a kernel keeps one copy of what it loads ahead.
    for stages in (signature.stages, 1):
        options = {"num_warps": signature.warps, "num_stages": stages, "ptx_version": version}
        with triton.knobs.compilation.scope():
            # Else an engine would hold the paths of the machine that it was built on.
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
