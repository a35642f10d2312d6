"""What the options of `dmfnet-fuse` mean for one pair, of images or of volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmfnet_fast import __version__
from dmfnet_fast.commands.engine_options import EngineOptions
from dmfnet_fast.commands.fuse_volumes import FORMATS as VOLUME_FORMATS
from dmfnet_fast.commands.fuse_volumes import VolumeRequest
from dmfnet_fast.commands.journal import Job
from dmfnet_fast.errors import ImageError
from dmfnet_fast.images.formats import WRITERS, suffixes
from dmfnet_fast.volumes.reading import is_volume
from dmfnet_fast.wording import alternatives

MONTAGES = "montages"
DEFAULT_SUFFIX = "png"

# The names of options that are for one kind of input alone.
_FOR_IMAGES = {"with_montage": "--montage"}
_FOR_VOLUMES = {
    "series_a": "--series-a",
    "series_b": "--series-b",
    "modality_b": "--modality-b",
    "grid": "--grid",
    "register": "--register",
    "force_patient": "--force-patient",
    "colormap": "--colormap",
    "label": "--label",
}


def are_volumes(a: Path, b: Path) -> bool:
    """Whether A and B are volumes rather than images; of what is not there, the other one decides.

    Raises:
        ImageError: one is a volume and the other is not, or one cannot be read.
    """
    kinds = {path: is_volume(path) for path in (a, b) if path.exists()}
    if len(set(kinds.values())) == 2:
        one, other = (a, b) if kinds[a] else (b, a)
        raise ImageError(f"{one} is a volume (DICOM or NIfTI), and {other} is not: give two volumes or two images")
    return any(kinds.values())


def check_options(given: Mapping[str, Any], volumes: bool) -> None:
    """Raise an ImageError if an option is given that does not apply."""
    others, kind = (_FOR_IMAGES, "volumes") if volumes else (_FOR_VOLUMES, "images")
    for name, option in others.items():
        if given[name] not in (None, False):
            raise ImageError(f"{option}: is not for {kind}; leave it out")
    known = VOLUME_FORMATS if volumes else [suffix[1:] for suffix in suffixes(WRITERS)]
    if given["chosen_format"] not in (None, *known):
        raise ImageError(f"--format {given['chosen_format']}: is not for {kind}; use {alternatives(known)}")


def volume_request(engine: EngineOptions, given: Mapping[str, Any]) -> VolumeRequest:
    """The request for two volumes.

    Args:
        engine: options of the engine.
        given: all other options of the command, by the names of its parameters.
    """
    names = ("a", "b", "output", "range_a", "range_b", "overwrite", *(name for name in _FOR_VOLUMES if name != "grid"))
    stated = {name: given[name] for name in names}
    return VolumeRequest(engine=engine, grid=given["grid"] or "a", stated_format=given["chosen_format"], **stated)


def report_of(jobs: list[Job], **more: Any) -> dict[str, Any]:
    """What `--json` prints for several pairs."""
    counts = {status: sum(job.status == status for job in jobs) for status in ("fused", "skipped", "failed")}
    return {"version": __version__, **more, **counts, "pairs": [asdict(job) for job in jobs]}
