"""Fused volumes out: DICOM series, NIfTI files and PNG slices, written slice by slice; interrupted runs go on."""

from dmfnet_fast.volumes.writing.opening import Format, check_output, holds_result, open_writer, remove_result
from dmfnet_fast.volumes.writing.provenance import Provenance
from dmfnet_fast.volumes.writing.writer import VolumeWriter

__all__ = ["Format", "Provenance", "VolumeWriter", "check_output", "holds_result", "open_writer", "remove_result"]
