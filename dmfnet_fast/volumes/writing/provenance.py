"""What a fused volume was made with, and the identity of a run that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dmfnet_fast.volumes.volume import Volume


@dataclass(frozen=True)
class Provenance:
    """What made a result, apart from its sources. It is written into results, so nothing in it may name a patient.

    Attributes:
        version: of dmfnet-fast.
        engine: the engine file's name.
        weights: SHA-256 of the weights, as hexadecimal digits.
        settings: everything else that decides the result's values, such as ranges, the transform and the precision;
            anything that JSON holds.
    """

    version: str
    engine: str
    weights: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line, the same for equal provenances."""
        return json.dumps({**asdict(self), "settings": dict(self.settings)}, sort_keys=True)


def run_identity(provenance: Provenance, sources: tuple[Volume, Volume], **more: Any) -> str:
    """SHA-256 of all that decides a result: a run with the same identity may go on where another one stopped.

    Args:
        provenance: what the result is made with.
        sources: the volumes that are fused; their values, modalities, places, patients and studies count, not
            their names.
        more: what else makes a difference, as JSON holds it.
    """
    digest = hashlib.sha256(provenance.to_json().encode())
    digest.update(json.dumps(more, sort_keys=True).encode())
    for volume in sources:
        digest.update(f"{volume.shape} {volume.values.dtype} {volume.modality} {volume.affine.tolist()}".encode())
        if volume.link is not None:
            digest.update(json.dumps([volume.link.study, volume.link.series, volume.link.identity]).encode())
        digest.update(np.ascontiguousarray(volume.values).view(np.uint8).data)
    return digest.hexdigest()
