"""PNG: one upright image a slice."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from dmfnet_fast.volumes.planes import Upright
from dmfnet_fast.volumes.volume import Volume
from dmfnet_fast.volumes.writing.journal import SliceJournal
from dmfnet_fast.volumes.writing.provenance import Provenance
from dmfnet_fast.volumes.writing.slice_files import SliceFilesWriter

_MM_PER_INCH = 25.4
# About as small as the default of 6, in a third of the time.
_COMPRESSION = 3


class PngWriter(SliceFilesWriter):
    """Writes slices as radiologists look at them: the patient's right on the left, front or head up."""

    suffix = ".png"

    def __init__(self, output: Path, grid: Volume, journal: SliceJournal, provenance: Provenance) -> None:
        super().__init__(output, grid.shape, journal)
        self._upright = Upright(grid.affine)
        rows, columns = self._upright.spacing
        self._resolution = _MM_PER_INCH / columns, _MM_PER_INCH / rows
        self._text = PngImagePlugin.PngInfo()
        self._text.add_text("Software", f"dmfnet-fast {provenance.version}")
        self._text.add_text("Comment", "research only, not for diagnosis")

    def _encoded(self, index: int, rgb: NDArray[np.uint8]) -> bytes:  # noqa: ARG002
        buffer = io.BytesIO()
        Image.fromarray(self._upright(rgb)).save(
            buffer, "PNG", compress_level=_COMPRESSION, dpi=self._resolution, pnginfo=self._text
        )
        return buffer.getvalue()
