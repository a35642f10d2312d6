"""What `dmfnet-export` is asked for, checked before any work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from dmfnet_fast.engines import DEFAULT, shipped
from dmfnet_fast.engines.cuda_runtime import current_gpu
from dmfnet_fast.errors import DMFNetError, EngineError, OutputError, require
from dmfnet_fast.images.io import SMALLEST
from dmfnet_fast.images.padding import STRIDE
from export.tensorrt.builder import Flavour, Profile, known_gpus, require_builder

Target: TypeAlias = Literal["onnx"] | Flavour
Precision: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]

LARGEST = 16384
# The GPUs of RTX 30, 40 and 50.
DEFAULT_GPUS = ("sm_86", "sm_89", "sm_120")
WITHOUT_BFLOAT16 = "sm_75"


class RequestError(DMFNetError, ValueError):
    """Options that do not fit together, or mean nothing."""


def shipped_graph(weights: Path) -> Path:
    """The float16 graph that ships beside the weights file of a small network."""
    return weights.with_name(f"{weights.stem}-fp16.onnx")


@dataclass(frozen=True)
class Request:
    """One export.

    Attributes:
        source: weights (.safetensors), or an .onnx file that this command made.
        target: what to make.
        precision: of its arithmetic.
        profile: of an engine. An ONNX file takes any batch and size; for one, sizes for which it gets float32 results
            to compare engines with, beside the usual ones, or None.
        gpus: of a TensorRT-RTX engine.
        plugins: whether a TensorRT engine contains our kernels.
        timing_cache: of TensorRT.
        calibrate: folder of pairs that ranges for int8 are taken from; None takes phantoms.
        every_block: whether int8 is for the first and the last block too.
        server: folder of models for Triton Inference Server to write to, in place of `output`.
        output: file to write.
    """

    source: Path
    target: Target
    precision: Precision
    profile: Profile | None
    gpus: tuple[str, ...]
    plugins: bool
    timing_cache: Path | None
    calibrate: Path | None
    every_block: bool
    server: Path | None
    output: Path

    def __str__(self) -> str:
        lines = [f"source     {self.source}", f"target     {self.target}", f"precision  {self.precision}"]
        if self.target == "onnx" and self.server is None:
            lines.append("sizes      any multiple of 16 from 64 on, any batch")
        else:
            lines.append(f"sizes      {self.profile}")
        if self.gpus:
            lines.append(f"GPUs       {', '.join(self.gpus)}")
        if self.target == "tensorrt":
            lines.append(f"GPU        the one that it is built on\nplugins    {'yes' if self.plugins else 'no'}")
        if self.precision == "int8":
            lines.append(f"8 bits     {'every block' if self.every_block else 'all blocks but the first and the last'}")
            lines.append(f"calibrated {'with phantoms' if self.calibrate is None else f'on {self.calibrate}'}")
        if self.timing_cache is not None:
            lines.append(f"timings    {self.timing_cache}")
        lines.append(f"writes     {self.output}")
        return "\n".join(lines)


def parse_size(text: str, option: str) -> tuple[int, int]:
    """ "256" or "256x320", height first, as (height, width).

    Raises:
        RequestError: it is no size, or none that the network takes.
    """
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip())
    if match is None:
        raise RequestError(f"{option} {text}: give HEIGHTxWIDTH, such as 256x320, or one number for a square")
    height, width = int(match[1]), int(match[2] or match[1])
    if any(size % STRIDE or not SMALLEST <= size <= LARGEST for size in (height, width)):
        raise RequestError(f"{option} {text}: height and width must be multiples of {STRIDE}, {SMALLEST} to {LARGEST}")
    return height, width


def make_profile(size: str | None, least: str | None, best: str | None, most: str | None, batch: int) -> Profile:
    """The profile of one size, or of a range of them.

    Raises:
        RequestError: they contradict each other.
    """
    if size is not None and (least or best or most):
        raise RequestError("--size is one size, --min, --opt and --max are a range: give one or the other")
    if (least is None) != (most is None) or (best is not None and most is None):
        raise RequestError("--min, --opt, --max: give --min and --max; --opt is that which should be fastest")
    if least is None or most is None:
        one = parse_size(size or "256", "--size")
        return Profile((1, *one), (batch, *one), (batch, *one))
    low, high = parse_size(least, "--min"), parse_size(most, "--max")
    middle = parse_size(best, "--opt") if best else high
    for small, small_name, large, large_name in ((low, "--min", middle, "--opt"), (middle, "--opt", high, "--max")):
        if small[0] > large[0] or small[1] > large[1]:
            raise RequestError(
                f"{small_name} {small[0]}x{small[1]} is larger than {large_name} {large[0]}x{large[1]}: "
                "--min, --opt and --max must ascend in height and in width"
            )
    return Profile((1, *low), (batch, *middle), (batch, *high))


def _check_gpus(named: str | None, target: Target, precision: Precision) -> tuple[str, ...]:
    if target != "tensorrt-rtx":
        if named is not None:
            raise RequestError("--gpu is for --target tensorrt-rtx: TensorRT builds for the GPU that it runs on")
        return ()
    known = known_gpus()
    gpus = tuple(dict.fromkeys(name.strip() for name in named.split(","))) if named is not None else DEFAULT_GPUS
    for name in gpus:
        if name not in known:
            raise RequestError(
                f"--gpu {name or repr(name)}: TensorRT-RTX builds for {', '.join(known)}; "
                "for Jetson and datacenter GPUs use --target tensorrt"
            )
    if precision == "bfloat16" and WITHOUT_BFLOAT16 in gpus:
        raise RequestError(f"--gpu {WITHOUT_BFLOAT16}: has no bfloat16; use --fp16")
    return gpus


def make_request(
    source: Path | None,
    target: Target,
    precision: Precision | None,
    size: str | None,
    least: str | None,
    best: str | None,
    most: str | None,
    batch: int | None,
    gpu: str | None,
    plugins: bool,
    timing_cache: Path | None,
    calibrate: Path | None,
    every_block: bool,
    server: Path | None,
    output: Path | None,
) -> Request:
    """The options of the command, checked.

    Raises:
        RequestError, EngineError, OutputError: an option is wrong.
        MissingExtraError: TensorRT-RTX, which knows what GPUs it builds for, is not installed.
    """
    kind = precision or ("float32" if target == "onnx" else "float16")
    if kind == "int8" and (target != "onnx" or server is not None):
        raise RequestError("--int8 is for --target onnx without --triton-server: OpenVINO alone runs such files")
    if calibrate is not None and kind != "int8":
        raise RequestError("--calibrate is for --int8: no other precision needs images")
    if every_block and kind != "int8":
        raise RequestError("--every-block is for --int8: in other precisions all blocks are alike")
    if calibrate is not None and not calibrate.is_dir():
        raise RequestError(f"--calibrate {calibrate}: is no folder; give one that holds train/CT-MRI/MRI and so on")
    if target == "onnx" and server is None and batch is not None:
        raise RequestError("--batch is for engines: an ONNX file takes any")
    if target != "tensorrt" and plugins:
        raise RequestError("--plugins is for --target tensorrt: nothing else runs them")
    if target != "tensorrt" and timing_cache is not None:
        raise RequestError("--timing-cache is for --target tensorrt: nothing else takes timings")
    if server is not None and target == "tensorrt-rtx":
        raise RequestError("--triton-server: the server runs no TensorRT-RTX engines; use --target tensorrt or onnx")
    given = make_profile(size, least, best, most, batch or 1)
    profile = None if target == "onnx" and server is None and not any((size, least, most)) else given
    if server is not None and profile is not None and profile.min[1:] != profile.max[1:]:
        raise RequestError("--triton-server: a served model takes one size, so give one --size")
    gpus = _check_gpus(gpu, target, kind)
    if timing_cache is not None and (timing_cache.is_dir() or not timing_cache.absolute().parent.is_dir()):
        raise RequestError(f"--timing-cache {timing_cache}: name a file in a folder that exists")
    suffix = ".onnx" if target == "onnx" else ".engine"
    if source is None or str(source) in shipped():
        weights = shipped()[str(source or DEFAULT)]
        # The graph that ships needs neither torch nor the half minute of exporting it.
        graph = shipped_graph(weights)
        source = graph if target != "onnx" and kind == "float16" and graph.exists() else weights
        stem = weights.stem
    else:
        stem = source.stem
    _check_source(source)
    if server is not None:
        name = stem if output is None else str(output)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise RequestError(
                f"{name!r}: is no name for a model on a server: with --triton-server, -o NAME gives one of letters, "
                "digits, '.', '_' and '-'"
            )
        if not server.is_dir() and (server.exists() or not server.absolute().parent.is_dir()):
            raise OutputError(f"{server}: is no folder, and cannot be made one")
        output = server / name
        if output.exists():
            raise OutputError(f"{output}: is there already; remove it, or name the new one with -o NAME")
    elif output is None:
        output = Path(f"{stem}{suffix}")
    if server is None:
        if source.suffix.lower() == ".onnx" and target == "onnx":
            raise RequestError(f"{source}: is an ONNX file already; give weights (.safetensors)")
        _check_output(output, source, suffix)
    return Request(source, target, kind, profile, gpus, plugins, timing_cache, calibrate, every_block, server, output)


def check_machine(request: Request) -> None:
    """Whether this machine has what an export takes, before any work is done.

    Raises:
        MissingExtraError: something is not installed.
        EngineError: there is no GPU, and TensorRT builds on the one that the engine is for.
    """
    if request.target != "onnx":
        require_builder(request.target)
    if request.plugins:
        require("onnx", extra="export")
        require("triton", extra="export", hint=" on Linux; or leave --plugins out")
    if request.target == "tensorrt":
        current_gpu()


def _check_source(source: Path) -> None:
    if source.is_dir():
        raise EngineError(f"{source}: is a folder; give weights (.safetensors), or a graph (.onnx)")
    if not source.exists():
        raise EngineError(f"{source}: no such file")
    if source.suffix.lower() in (".pth", ".pt", ".ckpt"):
        raise EngineError(f"{source}: is a torch checkpoint; dmfnet-convert makes weights (.safetensors) of it")
    if source.suffix.lower() not in (".safetensors", ".onnx"):
        raise EngineError(f"{source}: is neither weights (.safetensors) nor a graph of this command (.onnx)")


def _check_output(output: Path, source: Path, suffix: str) -> None:
    if output.suffix.lower() != suffix:
        raise OutputError(f"{output}: name an {suffix} file")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; name a file to write")
    if not output.parent.is_dir():
        raise OutputError(f"{output}: cannot be written: the folder {output.parent} does not exist")
    if output.exists() and source.exists() and output.samefile(source):
        raise OutputError(f"{output}: is what is exported; name another file to write")
