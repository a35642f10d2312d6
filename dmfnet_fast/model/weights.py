"""Weights files: one .safetensors file with the tensors, the configuration, the training record and a hash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dmfnet_fast.artifacts.atomic import replacing
from dmfnet_fast.artifacts.onnx_metadata import FORMAT
from dmfnet_fast.config import ModelConfig, StudentConfig, config_from_dict
from dmfnet_fast.errors import EngineError
from dmfnet_fast.model.denoiser import Denoiser
from dmfnet_fast.model.network import DMFNet
from dmfnet_fast.model.student import Student
from dmfnet_fast.wording import alternatives

Network: TypeAlias = DMFNet | Student  # the networks that fuse
_KINDS: dict[type[Network | Denoiser], str] = {DMFNet: "dmfnet", Denoiser: "denoiser", Student: "student"}


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes of all tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tensors(source: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that `tensors` have the names and shapes of `expected`, are of a floating-point type, and are finite.

    Raises:
        EngineError: a tensor is missing, unknown, of another shape or type, or not finite; the message names `source`
            and the tensors, at most ten.
    """
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unknown {name}" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        if tensor.shape != expected[name].shape:
            problems.append(f"{name} is {list(tensor.shape)}, not {list(expected[name].shape)}")
        elif not tensor.is_floating_point():
            problems.append(f"{name} is of type {tensor.dtype}, not floating-point")
        elif not torch.isfinite(tensor).all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise EngineError(f"{source}: its tensors do not fit the network: {shown}")


def network_of(config: ModelConfig | StudentConfig) -> Network:
    """A network of this configuration, with PyTorch's random initial weights."""
    return Student(config) if isinstance(config, StudentConfig) else DMFNet(config)


def _empty_model(kind: type[Network | Denoiser], config: ModelConfig | StudentConfig) -> Network | Denoiser:
    """A model whose parameters take no memory until `load_state_dict(assign=True)` fills them.

    Raises:
        TypeError: the configuration is that of another kind of model.
    """
    with torch.device("meta"):
        if kind is Denoiser and isinstance(config, ModelConfig):
            return Denoiser(config)
        model = network_of(config)
    if type(model) is not kind:
        raise TypeError(f"its configuration is not that of a {_KINDS[kind]}")
    return model


def save_model(model: Network | Denoiser, path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> None:
    """Write `model` to `path` (.safetensors), completely or not at all.

    The metadata holds the model's kind, configuration, training record (`model.record`, any JSON-serializable values)
    and the hash of its weights.

    Args:
        model: the model to save.
        path: the file to write.
        dtype: floating-point type of the stored tensors; float16 halves the size of the file.

    Raises:
        OutputError: `path` cannot be written.
    """
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in model.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "kind": _KINDS[type(model)],
        "config": json.dumps(model.config.to_dict()),
        "training": json.dumps(model.record),
        "sha256": weights_hash(tensors),
    }
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; errors while it is open are raised as EngineError."""
    if not path.exists():
        raise EngineError(f"{path}: no such file")
    if not path.is_file():
        raise EngineError(f"{path}: is not a file; give a .safetensors weights file")
    if not os.access(path, os.R_OK):  # safetensors would say that there is no such file
        raise EngineError(f"{path}: cannot be read: permission denied")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise EngineError(
            f"{path}: is not a readable .safetensors file, or is damaged ({error}); "
            "published .pth checkpoints are converted by dmfnet-convert"
        ) from error


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata of a weights file without checking its tensors.

    Raises:
        EngineError: the file cannot be read.
    """
    with _opened(Path(path)) as file:
        return file.metadata() or {}


def _load(path: str | os.PathLike[str], *wanted: type[Network | Denoiser]) -> Network | Denoiser:
    path = Path(path)
    with _opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
        names: list[str] = file.keys()
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    if metadata.get("format") != FORMAT:
        raise EngineError(
            f"{path}: was not written by this package (format {metadata.get('format')!r}, not {FORMAT!r})"
        )
    kinds = {_KINDS[kind]: kind for kind in wanted}
    if metadata.get("kind") not in kinds:
        raise EngineError(f"{path}: holds a {metadata.get('kind')}, but a {alternatives(kinds)} is needed")
    try:
        config = config_from_dict(json.loads(metadata["config"]))
        record: dict[str, Any] = json.loads(metadata["training"])
        model = _empty_model(kinds[metadata["kind"]], config)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path}: its metadata is damaged: {error}") from error
    check_tensors(str(path), tensors, model.state_dict())
    if metadata.get("sha256") != weights_hash(tensors):
        raise EngineError(f"{path}: its weights do not match their hash: the file is damaged; fetch it again")
    # Without a copy, the model would remain a view of the memory-mapped file and change with it.
    loaded = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(loaded, assign=True)
    model.record = record
    return model.eval()


def load_model(path: str | os.PathLike[str]) -> Network:
    """Load a network from a weights file, in float32 and eval mode, on the CPU.

    Raises:
        EngineError: the file is missing, damaged, of another kind, or does not fit the network.
    """
    model = _load(path, DMFNet, Student)
    assert not isinstance(model, Denoiser)
    return model


def load_denoiser(path: str | os.PathLike[str]) -> Denoiser:
    """Load the denoiser from a file of stage I or from that of a whole DM-FNet, as `load_model` does.

    Raises:
        EngineError: the file is missing, damaged, of another kind, or does not fit the network.
    """
    model = _load(path, Denoiser, DMFNet)
    if isinstance(model, Denoiser):
        return model
    assert isinstance(model, DMFNet)
    model.denoiser.record = {stage: record for stage, record in model.record.items() if stage == "stage1"}
    return model.denoiser
