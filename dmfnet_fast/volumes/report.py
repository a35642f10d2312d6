"""What was decided on the way to a fused volume, as data; nothing in it names a patient, nor do paths appear."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dmfnet_fast.volumes.alignment import Alignment
from dmfnet_fast.volumes.looks import PUMPING, Looks, pumping
from dmfnet_fast.volumes.messages import anonymous
from dmfnet_fast.volumes.showing import Shown
from dmfnet_fast.volumes.volume import Volume

COMMAND = "dmfnet-fuse"
MARK = f'"made_by": "{COMMAND}"'
NOTICE = "Research only, not for diagnosis. Not a medical device."
_PACKAGES = ("dmfnet-fast", "numpy", "Pillow", "pydicom", "python-gdcm", "nibabel", "SimpleITK")
_LEFT_OUT = "one file: left out: "


@dataclass(frozen=True, eq=False)
class Fusion:
    """All that a report is made of.

    Attributes:
        alignment: both volumes on one grid.
        a, b: how they are shown.
        looks: what was kept of the slices.
        engine: `Fuser.info`.
        settings: what else decides the result.
        format: in which it is written.
        files: how many files hold it.
        seconds: how long each step took.
        warnings: all that the user was warned of.
    """

    alignment: Alignment
    a: Shown
    b: Shown
    looks: Looks
    engine: Mapping[str, str]
    settings: Mapping[str, Any]
    format: str
    files: int
    seconds: Mapping[str, float]
    warnings: list[str] = field(default_factory=list)

    @property
    def pumping(self) -> float:
        """See `looks.pumping`."""
        return pumping(self.looks.means)


def _notes(volume: Volume) -> list[str]:
    """What was done on reading; files that were left out are counted by reason."""
    all_notes = [anonymous(note) for note in volume.source.notes]
    left_out = Counter(note.removeprefix(_LEFT_OUT) for note in all_notes if note.startswith(_LEFT_OUT))
    return [note for note in all_notes if not note.startswith(_LEFT_OUT)] + [
        f"{count} file{'s' if count > 1 else ''} left out: {reason}" for reason, count in sorted(left_out.items())
    ]


def describe(volume: Volume) -> dict[str, Any]:
    """A volume as it is on the common grid, by what does not name a patient; names of NIfTI files may."""
    source, dicom = volume.source, volume.source.kind == "dicom"
    return {
        "kind": source.kind,
        "series": source.uid if dicom else None,
        "description": source.description if dicom else None,
        "modality": volume.modality,
        "units": volume.units,
        "frame_of_reference": volume.frame_of_reference,
        "files": source.files,
        "notes": _notes(volume),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that had a part in the result, if installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def to_dict(fusion: Fusion) -> dict[str, Any]:
    """The report, as JSON holds it."""
    alignment = fusion.alignment
    grid = alignment.a
    means = fusion.looks.means.round(3).T.tolist()
    return {
        "made_by": COMMAND,
        "notice": NOTICE,
        "versions": versions(),
        "sources": {"a": describe(alignment.a), "b": describe(alignment.b)},
        "grid": {
            "of": alignment.grid,
            "shape": list(grid.shape),
            "spacing_mm": [round(step, 6) for step in grid.spacing],
            "affine_lps": grid.affine.round(6).tolist(),
        },
        "alignment": {
            "registered": alignment.registered,
            "transform_lps_mm": alignment.transform.round(6).tolist(),
            "coverage": round(alignment.coverage, 4),
            "overlap": round(alignment.overlap, 4),
            "mutual_information_bits": round(alignment.mutual_information, 4),
            "mutual_information_by_headers_bits": round(alignment.mutual_information_by_headers, 4),
            "inverse_error_mm": None if alignment.inverse_error is None else round(alignment.inverse_error, 4),
        },
        "display": {
            name: {"range": list(shown.limits), "units": shown.volume.units, "colormap": shown.palette}
            for name, shown in (("a", fusion.a), ("b", fusion.b))
        },
        "engine": dict(fusion.engine),
        "settings": dict(fusion.settings),
        "output": {"format": fusion.format, "files": fusion.files},
        "pumping": {
            "ratio": round(fusion.pumping, 4),
            "limit": PUMPING,
            "slice_means": dict(zip(("a", "b", "fused"), means, strict=True)),
        },
        "seconds": {step: round(seconds, 3) for step, seconds in fusion.seconds.items()},
        "warnings": fusion.warnings,
    }


def to_json(fusion: Fusion) -> str:
    """The report as the text of report.json."""
    text = json.dumps(to_dict(fusion), indent=1, allow_nan=False) + "\n"
    assert MARK in text
    return text
