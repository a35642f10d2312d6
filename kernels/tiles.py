"""Launch configurations, data only: the shape of a program's tile, its warps and stages, for each architecture.

Chosen so that every thread loads 16 bytes at once and, with channels in multiples of 16, no register spills
(`python -m kernels.report` shows it). Those of compute capability 9.0 were tuned on an H200 (docs/gpu.md), no others.
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
class ConvolutionTile:
    """Pixels and output channels of a program, and the input channels that it looks at at a time.

    `described`: tiles are fetched by the copy engine that GPUs have from compute capability 9.0 on, where they are
    whole rows of the image or parts of one.
    """

    pixels: int = 64
    channels: int = 32
    inner: int = 32
    warps: int = 4
    stages: int = 4
    described: bool = False


ANY = 2**62


@dataclass(frozen=True)
class ConvolutionRule:
    """Which convolutions a tile is for: up to so many channels in and out, and pixels of all images together."""

    inputs: int
    outputs: int
    pixels: int
    tile: ConvolutionTile


@dataclass(frozen=True)
class Tiles:
    """One architecture's.

    Attributes:
        epilogue: of a convolution; also of the statistics alone.
        normalize: GroupNorm and SiLU applied.
        pool: of the fusion gate's pass over x + y, for this many channels; with others more or fewer pixels.
        spatial: pixels of the fusion gate's 7x7 convolution.
        gate: of the fusion gate's last pass; the pixels are a square.
        upsample: bilinear.
        diffuse: pixels.
        first, head: of the convolutions from and to a single channel; the head takes all channels at a time.
        convolutions: the first rule that holds is taken; where none does, the convolution is cuDNN's.
        attention, attention_float32: by element size, for up to 128 and up to 256 channels.
    """

    epilogue: Tile = Tile(32, 64)
    normalize: Tile = Tile(32, 64)
    pool: Tile = Tile(16, 128)
    spatial: Tile = Tile(128, 1)
    gate: Tile = Tile(64, 32)
    upsample: Tile = Tile(32, 64)
    diffuse: Tile = Tile(1024, 1)
    first: Tile = Tile(128, 64)
    head: Tile = Tile(64, 1)
    convolutions: tuple[ConvolutionRule, ...] = ()
    attention: dict[int, AttentionTile] = field(
        default_factory=lambda: {128: AttentionTile(32, 64, 4, 2), 256: AttentionTile(32, 32, 4, 2)}
    )
    attention_float32: dict[int, AttentionTile] = field(
        default_factory=lambda: {128: AttentionTile(16, 32, 4, 1), 256: AttentionTile(16, 16, 4, 1)}
    )

    def convolution(self, inputs: int, outputs: int, pixels: int) -> ConvolutionTile | None:
        """The tile for a convolution of so many channels and pixels, of all images together; None for cuDNN's."""
        for rule in self.convolutions:
            if inputs <= rule.inputs and outputs <= rule.outputs and pixels <= rule.pixels:
                return rule.tile
        return None


# By compute capability, times ten.
ARCHITECTURES: dict[int, Tiles] = {
    80: Tiles(),
    86: Tiles(),
    87: Tiles(),
    89: Tiles(),
    90: Tiles(
        epilogue=Tile(16, 64, 2),
        head=Tile(16, 1, 2),
        convolutions=(
            ConvolutionRule(64, 64, 2**10, ConvolutionTile(32, 32, 32, 4, 3)),
            ConvolutionRule(32, 32, 2**13, ConvolutionTile(32, 32, 32, 2, 3)),
            ConvolutionRule(32, 32, ANY, ConvolutionTile(128, 32, 32, 4, 3)),
            ConvolutionRule(128, 64, 2**13, ConvolutionTile(64, 64, 64, 4, 3)),
            ConvolutionRule(128, 64, ANY, ConvolutionTile(128, 64, 64, 4, 3)),
            ConvolutionRule(ANY, ANY, 2**12, ConvolutionTile(64, 64, 64, 4, 4)),
            ConvolutionRule(ANY, ANY, 2**15, ConvolutionTile(64, 128, 64, 4, 4, described=True)),
            ConvolutionRule(ANY, ANY, ANY, ConvolutionTile(128, 128, 64, 4, 3, described=True)),
        ),
    ),
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
