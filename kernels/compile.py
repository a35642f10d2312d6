"""Ahead-of-time compilation of launches, for any NVIDIA architecture, on a machine without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.launch import Launch

# Shared memory that one block may use, in bytes (CUDA C++ Programming Guide, table of compute capabilities; 11.0 and
# 12.0 from its later editions).
SHARED_MEMORY = {
    80: 163 * 1024,
    86: 99 * 1024,
    87: 163 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    110: 227 * 1024,
    120: 99 * 1024,
}
REGISTERS = 65536  # of a block, on all of them

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_ALIGNED = 16  # bytes, and what an integer is a multiple of when the compiler may know


@dataclass(frozen=True)
class Signature:
    """What Triton compiles a launch for: two launches with equal signatures share a binary.

    Attributes:
        kernel: the jitted function.
        types: of the parameters, by name; "constexpr" for those that are constants.
        constants: their values, by name.
        aligned: names of the pointers and integers that are multiples of 16.
        warps, stages: as in `Launch`.
    """

    kernel: Any
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    warps: int
    stages: int


def signature_of(launch: Launch) -> Signature:
    """The signature by the rules that Triton follows when it launches: see its documentation of specialization.

    Memory is taken to be aligned, as PyTorch allocates it; an integer 1, None and tl.constexpr are constants.
    """
    types: dict[str, str] = {}
    constants = dict(launch.constants)
    aligned: list[str] = []
    for name in launch.kernel.arg_names:
        value = launch.arguments.get(name)
        if name in constants or value is None or (type(value) is int and value == 1):
            types[name] = "constexpr"
            constants.setdefault(name, value)
        elif isinstance(value, TensorDescriptor):
            block = ", ".join(map(str, value.block_shape))
            types[name] = f"tensordesc<{_TYPES[value.base.dtype]}[{block}]>"
        elif isinstance(value, Tensor):
            types[name] = "*" + _TYPES[value.dtype]
            aligned.append(name)
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name] = "i32" if value < 2**31 else "i64"
            if value % _ALIGNED == 0:
                aligned.append(name)
    return Signature(
        launch.kernel,
        tuple(types.items()),
        tuple(sorted(constants.items())),
        tuple(aligned),
        launch.warps,
        launch.stages,
    )


@dataclass(frozen=True)
class Binary:
    """A compiled kernel.

    Attributes:
        ptx: its assembly.
        registers: of a thread.
        shared: bytes of shared memory.
        spills: bytes of registers that are spilled to memory, as ptxas counts stores and loads.
        load, store: the widest access of a thread to global memory, in bytes. Copies to shared memory are loads;
            what the copy engine fetches is no thread's, and not counted.
    """

    ptx: str
    registers: int
    shared: int
    spills: int
    load: int
    store: int


def _widest(ptx: str, kind: str) -> int:
    """Bytes of the widest instruction of `kind`, "ld" or "st", on global memory; 0 if there is none."""
    widths = [0]
    for vector, bits in re.findall(rf"\b{kind}\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfus](\d+)\b", ptx):
        widths.append(int(vector or 1) * int(bits) // 8)
    # A loop with several stages loads ahead into shared memory, past the registers; with `described` tiles by
    # cp.async.bulk.tensor, which has a box in place of a width.
    if kind == "ld":
        copies = re.findall(r"\bcp\.async\.c[ag]\.shared\.global\S* \[[^]]*\], \[[^]]*\], (0x\w+|\d+)", ptx)
        widths += [int(size, 0) for size in copies]
    return max(widths)


def compile_signature(signature: Signature, architecture: int) -> Binary:
    """Compile for compute capability `architecture` / 10, through to machine code."""
    names = [name for name, _ in signature.types]
    source = ASTSource(
        signature.kernel,
        dict(signature.types),
        dict(signature.constants),
        {(names.index(name),): [["tt.divisibility", _ALIGNED]] for name in signature.aligned},
    )
    target = GPUTarget("cuda", architecture, 32)
    options = {"num_warps": signature.warps, "num_stages": signature.stages}
    compiled = triton.compile(source, target=target, options=options)
    ptx = compiled.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [get_ptxas(architecture).path, "-v", f"--gpu-name={sm_arch_from_capability(architecture)}"]
        said = subprocess.run(
            [*command, str(file), "-o", str(file.with_suffix(".cubin"))], check=True, capture_output=True, text=True
        ).stderr
    (registers,) = re.findall(r"Used (\d+) registers", said)
    return Binary(
        ptx,
        int(registers),
        compiled.metadata.shared,
        sum(int(count) for count in re.findall(r"(\d+) bytes spill", said)),
        _widest(ptx, "ld"),
        _widest(ptx, "st"),
    )
