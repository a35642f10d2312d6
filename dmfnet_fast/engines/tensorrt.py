"""Runs `.engine` files made by dmfnet-export with TensorRT or TensorRT-RTX on an NVIDIA GPU, without PyTorch."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.artifacts.cache import cache_folder, prune
from dmfnet_fast.artifacts.interface import IMAGES_TAKEN, interface_of
from dmfnet_fast.artifacts.manifest import Manifest, load_check
from dmfnet_fast.artifacts.parity import Parity, Shape, check, compare_with, result_of
from dmfnet_fast.engines.base import Engine, some_pairs
from dmfnet_fast.engines.bound_shape import BoundShape, expect
from dmfnet_fast.engines.cuda_runtime import Cuda
from dmfnet_fast.engines.tensorrt_log import Log, logger
from dmfnet_fast.errors import EngineError, ImageError, OutputError, is_lack_of_memory, require, warn
from dmfnet_fast.precision import PrecisionChoice
from dmfnet_fast.wording import aligned

KEPT_SHAPES = 4  # number of shapes whose contexts, buffers and graphs stay in GPU memory
MOST_LAYERS = 400  # largest number of layers listed by `describe`
_RECORD = ".parity.json"


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries that run `.engine` files.

    Attributes:
        module: name of the Python module.
        tuned_to_model: whether an engine reaches full speed only on the GPU model that it was built on.
        compiles_when_run: whether kernels are compiled at the first run of a shape and kept in a cache.
    """

    module: str
    tuned_to_model: bool
    compiles_when_run: bool


# The keys are the names in manifests, in dmfnet-export --target and in the extras of this package.
FLAVOURS = {
    "tensorrt": Flavour("tensorrt", tuned_to_model=True, compiles_when_run=False),
    "tensorrt-rtx": Flavour("tensorrt_rtx", tuned_to_model=False, compiles_when_run=True),
}


class TensorRTEngine(Engine):
    """An engine file with its manifest beside it; see `dmfnet_fast.artifacts.manifest`.

    Each shape has an execution context, the memory that TensorRT requests for it, and a CUDA graph; those of the last
    four shapes are kept. Everything runs on one stream that belongs to the engine.

    When the engine is opened on a GPU model on which it has not been verified yet, it is compared with its check pair,
    and the result is recorded in the manifest, or in the cache folder if the manifest cannot be written. TensorRT-RTX
    compiles kernels at the first run of a shape; they are kept in the cache folder. What is kept there belongs to one
    engine, GPU model and version of CUDA.

    This class has never run on a GPU: the tests replace the driver and TensorRT with stand-ins.
    """

    def __init__(self, path: Path, device: str, precision: PrecisionChoice, threads: int | None) -> None:
        del threads  # only CPU engines use them
        self._shapes: dict[Shape, BoundShape] = {}  # the most recently used last
        self._stack = ExitStack()
        self._context: Callable[[], Any] | None = None
        self._opened: list[Any] = []
        self._kernels: Path | None = None  # where TensorRT-RTX's kernels are kept
        self._cached = b""
        self._verified = False
        self._manifest = manifest = Manifest.read(path)
        self._path = path
        if precision not in ("auto", manifest.precision):
            raise EngineError(
                f"{path}: its precision is {manifest.precision}; precision {precision!r} takes another export"
            )
        manifest.check_file(path)
        if manifest.flavour not in FLAVOURS:
            raise EngineError(f"{path}: is of an unknown flavour {manifest.flavour!r}; export it again")
        self._flavour = FLAVOURS[manifest.flavour]
        self._trt: Any = require(self._flavour.module, extra=manifest.flavour)
        self._check_version()
        self._cuda = Cuda(device, manifest.flavour)
        self._check_gpu(device)
        self.largest_batch = manifest.shapes["max"][0]
        self.interface = interface_of(manifest.config, manifest.pixels)
        self.takes_pixels = manifest.pixels
        try:
            with self._cuda.current():
                self._open()
            self._verify()
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        """Raise an EngineError unless the installed release is the one that built the engine.

        TensorRT's documentation requires this under "Version Compatibility", TensorRT-RTX's under "Engine
        Compatibility".
        """
        found, needed = getattr(self._trt, "__version__", "none"), self._manifest.version
        if found != needed:
            raise EngineError(
                f"{self._path}: was built with {self._flavour.module} {needed}, here is {found}: install "
                f"that version ({self._flavour.module.replace('_', '-')}=={needed}), or export it again here"
            )

    def _check_gpu(self, device: str) -> None:
        gpu = self._cuda.gpu
        self._gpu = gpu.model
        if gpu.capability not in self._manifest.compute_capabilities:
            wanted = ", ".join(self._manifest.compute_capabilities)
            raise EngineError(
                f"{self._path}: is for GPUs of compute capability {wanted}; {device} is {gpu.name}, {gpu.capability}: "
                "export it again, here or for that"
            )
        if self._flavour.tuned_to_model and gpu.model != self._manifest.device:
            # TensorRT's documentation, "Engine Compatibility": the engine runs, but may be slower or run out of memory.
            warn(
                f"{self._path}: was built on {self._manifest.device}, here is {gpu.model}: export it again for full "
                "speed"
            )

    def _cached_file(self, suffix: str) -> Path | None:
        """A file in the cache folder, for this engine, GPU model and version of CUDA; None if there is no folder."""
        folder = cache_folder()
        if folder is None:
            return None
        key = "\n".join((self._manifest.engine["sha256"], self._gpu, self._cuda.driver))
        return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}{suffix}"

    def _open(self) -> None:
        trt, cuda = self._trt, self._cuda
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
        self._stack.callback(cuda.call, "cudaStreamDestroy", self._stream)
        self._log = Log()
        messages = logger(trt, self._log)
        runtime = trt.Runtime(messages)
        engine = runtime.deserialize_cuda_engine(self._path.read_bytes())
        expect(engine, f"open {self._path}, which may be damaged (export it again)", self._log)
        # Popped from the end, as TensorRT requires the order engine, runtime, logger for their destruction.
        self._opened += [messages, runtime, engine]
        self._stack.callback(self._forget_opened)
        self._stack.callback(self._drop_shapes)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._flavour.compiles_when_run:
            self._context = lambda: engine.create_execution_context(strategy)
        else:
            config = expect(engine.create_runtime_config(), "make a runtime configuration", self._log)
            config.set_execution_context_allocation_strategy(strategy)
            # By default, the first runs of a shape use kernels for any shape, and a CUDA graph would capture those.
            kinds = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
            cache = expect(config.create_runtime_cache(), "make a runtime cache", self._log)
            self._kernels = self._cached_file(".kernels")
            with suppress(OSError):
                if self._kernels is not None:
                    self._cached = self._kernels.read_bytes()
                    cache.deserialize(self._cached)  # ignores entries that do not match
            config.set_runtime_cache(cache)
            self._opened += [cache, config]
            self._context = lambda: engine.create_execution_context(config)

    def _forget_opened(self) -> None:
        self._context = None
        while self._opened:
            self._opened.pop()

    def _save_kernels(self) -> None:
        """Write the kernels that TensorRT-RTX has compiled to the cache folder if there are new ones."""
        if self._kernels is None:
            return
        content = bytes(self._opened[3].serialize())
        if content != self._cached:
            self._cached = content
            with suppress(OutputError), replacing(self._kernels) as temporary:
                temporary.write_bytes(content)
            prune(self._kernels.parent)

    def _verify(self) -> None:
        """Compare the engine with its check pair, once on every GPU model, as TensorRT-RTX compiles kernels for each.

        Raises:
            EngineError: the images differ too much, or the check pair cannot be read.
        """
        manifest = self._manifest
        self._verified = self._gpu in manifest.parity or self._was_verified()
        if self._verified:
            return
        if manifest.check is None:
            warn(
                f"{self._path}: has not been compared with its weights, as no float32 result of a size that it takes "
                "came with its graph: export it from weights, or from a graph that was exported for this size"
            )
            return
        wanted = load_check(self._path, manifest.check["sha256"], interface_of(manifest.config))
        parity = compare_with(self.info["engine"], manifest.precision, [result_of(self, wanted)], [wanted])
        try:
            check(parity, "it is not used; export it on this machine, or with another precision")
        except EngineError as error:
            raise EngineError(f"{self._path}: on this GPU its image {error}") from error
        self._verified = True
        self._manifest = replace(manifest, parity=manifest.parity | {self._gpu: parity.to_dict()})
        try:
            self._manifest.write(self._path)
        except OutputError:
            record = self._cached_file(_RECORD)
            if record is not None:
                with suppress(OutputError), replacing(record) as temporary:
                    temporary.write_text(json.dumps(parity.to_dict()))

    def _was_verified(self) -> bool:
        """Whether the cache folder has a record that this engine was verified here."""
        record = self._cached_file(_RECORD)
        if record is not None:
            with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                return Parity.from_dict(json.loads(record.read_text())).within
        return False

    def _check_size(self, height: int, width: int) -> None:
        least, most = self._manifest.shapes["min"], self._manifest.shapes["max"]
        if not (least[1] <= height <= most[1] and least[2] <= width <= most[2]):
            sizes = f"{least[1]}x{least[2]}"
            if least[1:] != most[1:]:
                sizes += f" to {most[1]}x{most[2]}"
            raise ImageError(
                f"{self._path}: takes {sizes} (height x width), the images are {height}x{width}, padded to multiples "
                "of 16: make an engine for them with dmfnet-export --size, or --min and --max"
            )

    def _bind(self, shape: Shape) -> BoundShape:
        assert self._context is not None
        return BoundShape(self._cuda, self._context, self._stream, self.interface, shape, self._log)

    def _bound(self, shape: Shape) -> BoundShape:
        bound = self._shapes.pop(shape, None)
        if bound is None:
            if len(self._shapes) == KEPT_SHAPES:
                self._shapes.pop(next(iter(self._shapes))).close()
            try:
                bound = self._bind(shape)
            except (MemoryError, RuntimeError) as error:
                if not is_lack_of_memory(error) or not self._shapes:
                    raise
                self._drop_shapes()
                bound = self._bind(shape)
            self._shapes[shape] = bound
            self._save_kernels()
            if not bound.captured:
                warn(f"{self._path}: TensorRT does not let it be a CUDA graph: it runs more slowly")
        self._shapes[shape] = bound
        return bound

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if self._context is None:
            raise EngineError("the engine is closed")
        fused = np.empty_like(inputs["b"])
        pairs, height, width = len(fused), *inputs["a"].shape[-2:]
        self._check_size(height, width)
        with self._cuda.current():
            for start in range(0, pairs, self.largest_batch):
                some = some_pairs(inputs, slice(start, start + self.largest_batch))
                fused[start : start + self.largest_batch] = self._bound((len(some["a"]), height, width)).run(some)
        return fused

    def _drop_shapes(self) -> None:
        with ExitStack() as stack:  # closes the others even if one fails
            while self._shapes:
                stack.callback(self._shapes.popitem()[1].close)

    def close(self) -> None:
        # The closing thread may not be the one that ran the engine, so its current GPU may be another one.
        with self._cuda.current() if self._opened else nullcontext():
            self._stack.close()

    def __del__(self) -> None:
        # Frees the GPU's memory if the caller forgot to close the engine.
        with suppress(Exception):
            self.close()

    @property
    def info(self) -> dict[str, str]:
        return {
            "engine": f"{self._flavour.module} {self._manifest.version}",
            "device": f"cuda:{self._cuda.index}",
            "precision": self._manifest.precision,
            "weights": self._manifest.weights,
            "verified": "yes" if self._verified else "no",
        }


def describe(path: Path) -> Iterator[str]:
    """Describe an engine from its manifest; see `EngineFunctions`."""
    manifest = Manifest.read(path)
    manifest.check_file(path)
    layers = manifest.layers
    yield from aligned(
        {
            "file": path,
            "kind": f"{manifest.flavour} {manifest.version} engine, {manifest.engine['bytes'] / 1e6:.1f} MB",
            "precision": manifest.precision,
            "images": IMAGES_TAKEN[manifest.pixels],
            "sizes": ", ".join(f"{corner} {'x'.join(map(str, s))}" for corner, s in manifest.shapes.items()),
            "compute capability": ", ".join(manifest.compute_capabilities),
            "built on": manifest.device or "a machine without its GPU",
            "built": f"{manifest.built}, in {manifest.build_seconds:.0f} s",
            "plugins": ", ".join(manifest.plugins) or "none",
            "weights": manifest.weights,
            "config": manifest.config,
            "training": manifest.training,
            "largest activation": f"{manifest.largest_activation:.4g}",
            "versions": manifest.versions,
        }
    )
    yield from (f"parity of its graph  {Parity.from_dict(entry)}" for entry in manifest.graph_parity)
    yield from (f"parity on {gpu}  {Parity.from_dict(entry)}" for gpu, entry in manifest.parity.items())
    if manifest.check is None and not manifest.parity:
        yield "parity  not verified, and no check pair to do it with"
    elif not manifest.parity:
        yield "parity  not verified yet: the first Fuser that opens it on its GPU does that"
    precisions = Counter(layer["precision"] or "none" for layer in layers["list"])
    yield f"layers  {layers['count']}, of which {layers['reformats']} only rearrange: {json.dumps(dict(precisions))}"
    for layer in layers["list"][:MOST_LAYERS]:
        yield f"  {layer['precision'] or '-':9} {layer['kind']:16} {layer['name']}"
    if len(layers["list"]) > MOST_LAYERS:
        yield f"  and {len(layers['list']) - MOST_LAYERS} more, in the manifest"
