"""Random pixels of every kind that formats hold."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (64, 80), np.uint8)
RGB8 = RNG.integers(0, 256, (64, 80, 3), np.uint8)
GRAY16 = RNG.integers(0, 65536, (64, 80), np.uint16)
RGB16 = RNG.integers(0, 65536, (64, 80, 3), np.uint16)
