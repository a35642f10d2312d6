"""The files beside a TensorRT engine: its manifest, and the check pair with which it is verified."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.artifacts.onnx_metadata import FORMAT
from dmfnet_fast.artifacts.parity import Parity, Reference
from dmfnet_fast.errors import EngineError
from dmfnet_fast.precision import FLOAT_PRECISIONS

KIND = "tensorrt engine"
AGAIN = "copy or export it again"
_BLOCK = 2**20


def manifest_path(engine: Path) -> Path:
    """Path of an engine's manifest."""
    return engine.with_name(f"{engine.name}.json")


def check_path(engine: Path) -> Path:
    """Path of an engine's check pair."""
    return engine.with_name(f"{engine.name}.check.npz")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """Description of a TensorRT engine.

    Attributes:
        precision: precision of the arithmetic: "float16", "bfloat16" or "float32".
        flavour: "tensorrt" or "tensorrt-rtx".
        version: version of the library that built the engine; the same version must run it.
        compute_capabilities: compute capabilities of the GPUs that the engine supports, such as "8.9".
        device: model of the GPU on which the engine was built, see `Gpu.model`; "" if there was none.
        shapes: "min", "opt" and "max", each as image pairs, height and width.
        engine: "sha256" and "bytes" of the engine file.
        weights: hash of the weights in the engine.
        config, training: configuration and training record of the network, as in a weights file.
        plugins: names of this project's kernels in the engine.
        layers: "count", "reformats" (number of layers that only rearrange or convert values), "kinds" (number of layers
            by kind) and "list".
        largest_activation: largest magnitude of any value inside the network on the verification inputs.
        graph_parity: parity of the graphs from which the engine was built, each as `parity.Parity.to_dict` gives it.
        parity: parity of the engine, by the model of the GPU on which it was verified.
        check: "sha256" of the check pair, or None.
        built, build_seconds: time of the build in ISO format, and its duration.
        versions: versions of the software that built the engine.
        pixels: whether it takes 8-bit images, see `Interface`; False in manifests that do not say.
    """

    precision: str
    flavour: str
    version: str
    compute_capabilities: list[str]
    device: str
    shapes: dict[str, list[int]]
    engine: dict[str, Any]
    weights: str
    config: dict[str, Any]
    training: dict[str, Any]
    plugins: list[str]
    layers: dict[str, Any]
    largest_activation: float
    graph_parity: list[dict[str, Any]]
    parity: dict[str, dict[str, Any]]
    check: dict[str, Any] | None
    built: str
    build_seconds: float
    versions: dict[str, str]
    pixels: bool = False

    @classmethod
    def read(cls, engine: Path) -> Manifest:
        """Read the manifest of the engine file `engine`.

        Raises:
            EngineError: the manifest is missing, cannot be read, is damaged, or is of another version.
        """
        path = manifest_path(engine)
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise EngineError(
                f"{engine}: has no manifest ({path.name}) beside it: copy {engine.name}* together, or export again"
            ) from error
        except (OSError, ValueError) as error:
            raise EngineError(f"{path}: is not a readable manifest ({error}): {AGAIN}") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT or values.pop("kind", None) != KIND:
            raise EngineError(f"{path}: is no manifest of this version of dmfnet-fast; export the engine again")
        try:
            manifest = cls(**values)
            manifest._check_values()
        except (TypeError, KeyError, ValueError) as error:
            raise EngineError(f"{path}: is damaged, or of another version ({error}); {AGAIN}") from error
        return manifest

    def _check_values(self) -> None:
        """Raise a TypeError, KeyError or ValueError if a value is not of the kind that the runtime expects."""
        kinds: dict[str, type | tuple[type, ...]] = {
            **dict.fromkeys(("precision", "flavour", "version", "device", "weights", "built"), str),
            **dict.fromkeys(("compute_capabilities", "plugins", "graph_parity"), list),
            **dict.fromkeys(("shapes", "engine", "config", "training", "layers", "parity", "versions"), dict),
            "check": (dict, type(None)),
            **dict.fromkeys(("largest_activation", "build_seconds"), (int, float)),
            "pixels": bool,
        }
        assert set(kinds) == {field.name for field in fields(self)}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(name)
        if self.precision not in FLOAT_PRECISIONS:
            raise ValueError(f"precision {self.precision!r}")
        if not all(isinstance(capability, str) for capability in self.compute_capabilities):
            raise TypeError("compute_capabilities")
        if not all(Parity.from_dict(parity).within for parity in (*self.parity.values(), *self.graph_parity)):
            raise ValueError("parity")
        for layer in self.layers["list"]:
            if not all(isinstance(layer[key], str) for key in ("name", "kind", "precision")):
                raise TypeError("layers")
        if not all(isinstance(self.layers[key], int) for key in ("count", "reformats")):
            raise TypeError("layers")
        if self.check is not None and not isinstance(self.check["sha256"], str):
            raise TypeError("check")
        for corner in ("min", "opt", "max"):
            pairs, height, width = self.shapes[corner]
            if not all(isinstance(n, int) and n > 0 for n in (pairs, height, width)):
                raise ValueError(f"shapes, {corner}")
        if not isinstance(self.engine["bytes"], int) or not isinstance(self.engine["sha256"], str):
            raise TypeError("engine")

    def write(self, engine: Path) -> None:
        """Write the manifest beside the engine file `engine`. Raises an OutputError if it cannot be written."""
        with replacing(manifest_path(engine)) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, "kind": KIND, **asdict(self)}, indent=1) + "\n")

    def check_file(self, engine: Path) -> None:
        """Raise an EngineError unless this manifest was written for the engine file `engine`."""
        try:
            size = engine.stat().st_size
            same = size == self.engine["bytes"] and file_sha256(engine) == self.engine["sha256"]
        except OSError as error:
            raise EngineError(f"{engine}: cannot be read: {error.strerror or error}") from error
        if size != self.engine["bytes"]:
            raise EngineError(f"{engine}: has {size} bytes, its manifest says {self.engine['bytes']}: {AGAIN}")
        if not same:
            raise EngineError(f"{engine}: is damaged, or is not the file that its manifest was written for: {AGAIN}")


def save_check(engine: Path, reference: Reference) -> str:
    """Write the check pair of the engine file `engine`, with its float32 result; returns the written file's hash."""
    with replacing(check_path(engine)) as temporary:
        np.savez_compressed(temporary, a=reference.a, b=reference.b, fused=reference.fused)
    return file_sha256(check_path(engine))


def load_check(engine: Path, sha256: str, interface: Interface) -> Reference:
    """Read the check pair of the engine file `engine`.

    Args:
        engine: path of the engine file.
        sha256: expected hash of the check pair, from the engine's manifest.
        interface: interface of the engine's network.

    Raises:
        EngineError: the check pair is missing, cannot be read, or has another hash.
    """
    path = check_path(engine)
    try:
        if file_sha256(path) != sha256:
            raise EngineError(f"{path}: is damaged, or is not the file that the engine's manifest names: {AGAIN}")
        with np.load(path, allow_pickle=False) as file:
            return Reference(file["a"], file["b"], file["fused"], interface)
    except FileNotFoundError as error:
        raise EngineError(
            f"{engine}: has not been verified on its GPU yet, and {path.name}, which the verification needs, is not "
            f"beside it: {AGAIN}"
        ) from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise EngineError(f"{path}: cannot be read ({error}): {AGAIN}") from error
