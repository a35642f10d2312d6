"""Launch configurations, data only: the shape of a program's tile, its warps and stages, for each architecture.

Chosen so that every thread loads 16 bytes at once and, with channels in multiples of 16, no register spills
(`python -m kernels.report` shows it). Not yet tuned on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tile:
    """Pixels and channels that a program handles at a time."""

    pixels: int
    channels: int
    warps: int = 4


@dataclass(frozen=True)
class AttentionTile:
    """Queries of a program, keys that it looks at at a time."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """One architecture's.

    Attributes:
        epilogue: of a convolution; also of the statistics alone.
        normalise: GroupNorm and SiLU applied.
        pool: of the fusion gate's pass over x + y, for this many channels; with others more or fewer pixels.
        spatial: pixels of the fusion gate's 7x7 convolution.
        gate: of the fusion gate's last pass; the pixels are a square.
        upsample: bilinear.
        diffuse: pixels.
        attention, attention_float32: by element size, for up to 128 and up to 256 channels.
    """

    epilogue: Tile = Tile(32, 64)
    normalise: Tile = Tile(32, 64)
    pool: Tile = Tile(16, 128)
    spatial: Tile = Tile(128, 1)
    gate: Tile = Tile(64, 32)
    upsample: Tile = Tile(32, 64)
    diffuse: Tile = Tile(1024, 1)
    attention: dict[int, AttentionTile] = field(
        default_factory=lambda: {128: AttentionTile(32, 64, 4, 2), 256: AttentionTile(32, 32, 4, 2)}
    )
    attention_float32: dict[int, AttentionTile] = field(
        default_factory=lambda: {128: AttentionTile(16, 32, 4, 1), 256: AttentionTile(16, 16, 4, 1)}
    )


# By compute capability, times ten.
ARCHITECTURES: dict[int, Tiles] = {
    80: Tiles(),
    86: Tiles(),
    87: Tiles(),
    89: Tiles(),
    90: Tiles(),
    110: Tiles(),
    120: Tiles(),
}


def tiles_for(architecture: int) -> Tiles:
    """The configurations of compute capability `architecture` / 10, or of the nearest one below it.

    Raises:
        ValueError: the GPU is older than Triton supports.
    """
    known = [number for number in ARCHITECTURES if number <= architecture]
    if not known:
        raise ValueError(f"compute capability {architecture / 10}: the kernels need 8.0 or later")
    return ARCHITECTURES[max(known)]
