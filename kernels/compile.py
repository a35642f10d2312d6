"""Ahead-of-time compilation of launches for any NVIDIA architecture; needs no GPU."""

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

# Most shared memory that a block can use, in bytes (CUDA C++ Programming Guide, table of compute capabilities; 11.0 and
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
REGISTERS = 65536  # per block, on all of these architectures

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8"}
_DIVISIBILITY = 16  # Triton specializes pointers and integers that are multiples of it


@dataclass(frozen=True)
class Signature:
    """Everything that Triton specializes a binary for: launches with equal signatures share a binary.

    Attributes:
        kernel: the jitted function.
        types: parameter types by name; "constexpr" for constants.
        constants: values of the constants, by name.
        aligned: names of the pointers and integers that are multiples of 16.
        warps, stages, fused_multiply_add: as in `Launch`.
    """

    kernel: Any
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    warps: int
    stages: int
    fused_multiply_add: bool


def signature_of(launch: Launch) -> Signature:
    """Derives the signature by Triton's specialization rules, which are part of its documentation.

    Memory is assumed to be aligned, as PyTorch allocates it. Integers equal to 1, None and tl.constexpr are constants.
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
            if value % _DIVISIBILITY == 0:
                aligned.append(name)
    return Signature(
        launch.kernel,
        tuple(types.items()),
        tuple(sorted(constants.items())),
        tuple(aligned),
        launch.warps,
        launch.stages,
        launch.fused_multiply_add,
    )


@dataclass(frozen=True)
class Binary:
    """A compiled kernel.

    Attributes:
        ptx: PTX assembly.
        registers: registers per thread.
        shared: bytes of shared memory per block.
        spills: bytes of register spills, stores and loads together, as ptxas counts them.
        load, store: the widest access of a thread to global memory, in bytes. Asynchronous copies to shared memory
            are loads; transfers by TMA (the Tensor Memory Accelerator) are not a thread's, and do not count.
    """

    ptx: str
    registers: int
    shared: int
    spills: int
    load: int
    store: int


def _widest(ptx: str, kind: str) -> int:
    """Width in bytes of the widest global-memory instruction of `kind`, "ld" or "st"; 0 if there is none."""
    widths = [0]
    for vector, bits in re.findall(rf"\b{kind}\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfus](\d+)\b", ptx):
        widths.append(int(vector or 1) * int(bits) // 8)
    # Pipelined loops prefetch into shared memory with cp.async, bypassing the registers. TMA's cp.async.bulk.tensor,
    # which `described` tiles use, transfers a box and has no width.
    if kind == "ld":
        copies = re.findall(r"\bcp\.async\.c[ag]\.shared\.global\S* \[[^]]*\], \[[^]]*\], (0x\w+|\d+)", ptx)
        widths += [int(size, 0) for size in copies]
    return max(widths)


def compile_signature(signature: Signature, architecture: int) -> Binary:
    """Compiles to machine code for compute capability `architecture` / 10."""
    names = [name for name, _ in signature.types]
    source = ASTSource(
        signature.kernel,
        dict(signature.types),
        dict(signature.constants),
        {(names.index(name),): [["tt.divisibility", _DIVISIBILITY]] for name in signature.aligned},
    )
    target = GPUTarget("cuda", architecture, 32)
    options = {
        "num_warps": signature.warps,
        "num_stages": signature.stages,
        "enable_fp_fusion": signature.fused_multiply_add,
    }
    compiled = triton.compile(source, target=target, options=options)
    ptx = compiled.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [get_ptxas(architecture).path, "-v", f"--gpu-name={sm_arch_from_capability(architecture)}"]
        if not signature.fused_multiply_add:
            command.append("--fmad=false")
        log = subprocess.run(
            [*command, str(file), "-o", str(file.with_suffix(".cubin"))], check=True, capture_output=True, text=True
        ).stderr
    (registers,) = re.findall(r"Used (\d+) registers", log)
    return Binary(
        ptx,
        int(registers),
        compiled.metadata.shared,
        sum(int(count) for count in re.findall(r"(\d+) bytes spill", log)),
        _widest(ptx, "ld"),
        _widest(ptx, "st"),
    )
