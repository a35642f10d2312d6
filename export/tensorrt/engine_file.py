"""Builds an engine, verifies it if this machine's GPU runs it, and writes it with its manifest."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from dmfnet_fast import __version__
from dmfnet_fast.artifacts.manifest import Manifest, check_path, file_sha256, manifest_path, save_check
from dmfnet_fast.artifacts.parity import Parity, Reference, check, compare_with, result_of
from dmfnet_fast.engines.cuda_runtime import Gpu, current_gpu
from dmfnet_fast.engines.kinds import TENSORRT
from dmfnet_fast.engines.tensorrt import FLAVOURS, TensorRTEngine
from dmfnet_fast.errors import EngineError, MissingExtraError, require, warn
from export.onnx.source import NOTHING_WRITTEN, Graph, Step
from export.request import Request, Tell
from export.tensorrt.builder import Profile, build, capability, require_builder
from export.tensorrt.layers import check_precision, summary

SHARE_OF_WORKSPACE = 4  # of a memory that GPU and system share, one such part may become scratch memory


@dataclass(frozen=True)
class Prepared:
    """The input of the builder.

    Attributes:
        content: a serialized ONNX model without functions.
        plugins: names of our plugins in it.
    """

    content: bytes
    plugins: tuple[str, ...]


def prepare(request: Request, content: bytes, tell: Tell) -> Prepared:
    """Replace the functions in a model by our plugins, if the request asks for it and this TensorRT supports them.

    Raises:
        MissingExtraError: onnx or triton is not installed.
        EngineError: there is no GPU.
    """
    if not request.plugins:
        return Prepared(content, ())
    import onnx

    from export.onnx.functions import inline
    from export.tensorrt.plugins import NAMESPACE, register_plugins, supports_plugins, with_plugins

    model = onnx.ModelProto.FromString(content)
    version = require_builder("tensorrt").__version__
    if supports_plugins(version):
        register_plugins(int(current_gpu().capability.replace(".", "")))
        model = with_plugins(model)
    else:
        tell(f"TensorRT {version} takes no plugins of ours (10.9 and later do): built without them")
        model = inline(model)
    names = {node.op_type for node in model.graph.node if node.domain == NAMESPACE}
    return Prepared(bytes(model.SerializeToString()), tuple(sorted(names)))


def in_profile(references: tuple[Reference, ...], profile: Profile) -> list[Reference]:
    """The references whose size the engine accepts, split into batches that it accepts."""
    result = []
    for reference in references:
        pairs, height, width = reference.shape
        if (profile.opt[0], height, width) in profile:
            for start in range(0, pairs, profile.max[0]):
                part = slice(start, start + profile.max[0])
                result.append(replace(reference, a=reference.a[part], b=reference.b[part], fused=reference.fused[part]))
    return result


def run_engine(path: Path, references: list[Reference]) -> Parity:
    """Run the engine `path` on this machine's GPU and compare it with the references."""
    engine = TensorRTEngine(path, "cuda", "auto", None)
    try:
        fused = [result_of(engine, reference) for reference in references]
        return compare_with(engine.info["engine"], engine.info["precision"], fused, references)
    finally:
        engine.close()


def _gpus(request: Request) -> tuple[Gpu | None, list[str]]:
    """This machine's GPU, None if the engine does not run on it, and the engine's compute capabilities."""
    if not request.gpus:
        gpu = current_gpu()
        return gpu, [gpu.capability]
    wanted = [capability(gpu) for gpu in request.gpus]
    with suppress(EngineError, MissingExtraError):
        gpu = current_gpu()
        if gpu.capability in wanted:
            return gpu, wanted
    return None, wanted


def _workspace(request: Request, gpu: Gpu | None, tell: Tell) -> int | None:
    """Most bytes of scratch memory for a layer: as requested, or part of a memory that is the system's too."""
    if request.workspace is not None:
        return request.workspace * 2**20
    if gpu is None or not gpu.integrated:
        return None
    limit = gpu.memory // SHARE_OF_WORKSPACE
    tell(
        f"scratch memory limited to {limit // 2**20} MiB, a quarter of what this GPU shares with the system "
        "(--workspace sets another limit)"
    )
    return limit


def make_engine(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> Manifest:
    """Build an engine and its manifest in `folder`, under the name of the request's output.

    An engine for this machine's GPU is run and compared with the network as trained. Any other is verified when it is
    first opened on its target, with the check pair that is written beside it.

    Args:
        request: a request with a profile.
        graph: graph in the request's precision.
        folder: folder that nothing else writes to.
        step: see `source.Step`.
        tell: shows a remark to the user.

    Raises:
        EngineError: the engine cannot be built, or its results differ from the network's and the request does not keep
            such engines.
        MissingExtraError: a library that the build needs is not installed.
        OutOfMemoryError: the build needs more memory than there is.
    """
    assert request.profile is not None
    flavour = request.target.name
    prepared = prepare(request, graph.content, tell)
    trt: Any = require_builder(flavour)
    gpu, capabilities = _gpus(request)
    device = "" if gpu is None else gpu.model
    workspace = _workspace(request, gpu, tell)
    with step(f"building with {FLAVOURS[flavour].module} {trt.__version__}") as report:
        built = build(
            prepared.content, flavour, request.profile, list(request.gpus), request.timing_cache, workspace, report
        )
    check_precision(built.layers, request.precision)
    path = folder / request.output.name
    path.write_bytes(built.engine)
    known = in_profile(graph.references, request.profile)
    largest = max(known, key=lambda reference: int(np.prod(reference.shape)), default=None)
    manifest = Manifest(
        precision=request.precision,
        flavour=flavour,
        version=trt.__version__,
        compute_capabilities=capabilities,
        device=device,
        shapes={name: list(getattr(request.profile, name)) for name in ("min", "opt", "max")},
        engine={"sha256": file_sha256(path), "bytes": len(built.engine)},
        weights=graph.weights,
        config=graph.config,
        training=graph.training,
        plugins=list(prepared.plugins),
        layers=summary(built.layers),
        largest_activation=graph.largest_activation,
        graph_parity=[parity.to_dict() for parity in graph.parity],
        parity={},
        check=None,
        built=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        build_seconds=round(built.seconds, 1),
        versions={"dmfnet-fast": __version__, "python": platform.python_version()},
        pixels=graph.pixels,
    )
    if largest is None:
        warn(
            "the engine stays unverified: the graph came without a float32 result of a size that it takes; export it "
            "from weights, or the graph with --size, or --min and --max"
        )
    else:
        manifest = replace(manifest, check={"sha256": save_check(path, largest)})
    if largest is not None and not device:
        tell("not verified: no GPU here runs it; the first Fuser that opens it on its target does that")
    elif largest is not None:
        manifest.write(path)
        with step("verifying on the GPU"):
            parity = run_engine(path, known)
        if not parity.within and request.no_check:
            warn(f"differs from the weights: {parity}; it is kept for diagnosis, but Fuser will refuse it")
        else:
            check(parity, f"{NOTHING_WRITTEN} (--no-check keeps the engine for diagnosis)")
            tell(str(parity))
            manifest = replace(manifest, parity={device: parity.to_dict()})
    manifest.write(path)
    return manifest


def for_server(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> tuple[bytes, Mapping[str, str]]:
    """Build the engine of a model for Triton Inference Server and run it here; see `triton_server.writer`.

    The manifest, which the server does not read, is thrown away.
    """
    made = replace(request, output=folder / f".plan{TENSORRT.suffix}")  # no model's name
    manifest = make_engine(made, graph, folder, step, tell)
    about = {manifest.flavour: manifest.version, "GPU": manifest.device}
    verified = [str(Parity.from_dict(parity)) for parity in manifest.parity.values()]
    return made.output.read_bytes(), about | ({"parity": verified[0]} if verified else {})


def publish(folder: Path, output: Path) -> None:
    """Move a finished engine to its output path. The manifest comes last, as an engine without one is not opened."""
    made = folder / output.name
    for old in (manifest_path(output), check_path(output)):
        old.unlink(missing_ok=True)
    for source, target in (
        (made, output),
        (check_path(made), check_path(output)),
        (manifest_path(made), manifest_path(output)),
    ):
        if source.exists():
            source.replace(target)


def check_machine(request: Request) -> None:
    """Check for the builder, the libraries that plugins need, and the GPU to build on; see `Target.check_machine`."""
    require_builder(request.target.name)
    if request.plugins:
        require("onnx", extra="export")
        require("triton", extra="export", hint=" on Linux; or leave --plugins out")
    if not request.gpus:
        current_gpu()


def write(request: Request, graph: Graph, folder: Path, step: Step, tell: Tell) -> None:
    """Write an engine and the files beside it; see `Target.write`."""
    made = make_engine(request, graph, folder, step, tell)
    publish(folder, request.output)
    tell(f"{made.layers['count']} layers, of which {made.layers['reformats']} only rearrange")
