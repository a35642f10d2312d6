"""Launch configurations as data: tile shape, warps and pipeline stages, for each architecture.

They are chosen so that every thread loads 16 bytes at once and, with channels in multiples of 16, registers do not
spill; `python -m kernels.report` shows both, and the exceptions. Only those of compute capability 9.0 were tuned, on an
H200 (docs/gpu.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tile:
    """Pixels and channels that a program handles per iteration."""

    pixels: int
    channels: int
    warps: int = 4


@dataclass(frozen=True)
class AttentionTile:
    """Queries per program, and keys per iteration."""

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class ConvolutionTile:
    """Pixels and output channels per program, and input channels per iteration.

    `described`: tiles that are whole rows of the image, or an even division of one, are loaded through tensor
    descriptors by TMA, the Tensor Memory Accelerator of compute capability 9.0 and later.

    `rows`: if not 0, a program of a 3x3 convolution computes that many rows of the result one after another, so that it
    loads a row of the input once for three of them; `pixels` are then those of a row, and divide the image's width. It
    keeps all its weights in shared memory, three outputs' for every one.
    """

    pixels: int = 64
    channels: int = 32
    inner: int = 32
    warps: int = 4
    stages: int = 4
    described: bool = False
    rows: int = 0


ANY = 2**62


@dataclass(frozen=True)
class ConvolutionRule:
    """The largest convolution that a tile is for: input channels, output channels, and pixels over the whole batch."""

    inputs: int
    outputs: int
    pixels: int
    tile: ConvolutionTile


def _applying(rules: tuple[ConvolutionRule, ...], inputs: int, outputs: int, pixels: int) -> Iterator[ConvolutionTile]:
    for rule in rules:
        if inputs <= rule.inputs and outputs <= rule.outputs and pixels <= rule.pixels:
            yield rule.tile


@dataclass(frozen=True)
class GateRule:
    """The largest maps that a fusion gate of two or three launches is for, and its tiles.

    Attributes:
        channels, pixels: of a map, at most.
        folded: whether the last pass computes the channel and the spatial attention for itself, in every program, which
            saves a launch; otherwise both are computed beside each other, in a launch between the passes.
        parts: that the pixels of an image are divided into, at most, when they are summed.
        pool, gate: of the first pass and of the last, as in `Tiles`.
    """

    channels: int
    pixels: int
    folded: bool
    parts: int
    pool: Tile
    gate: Tile


@dataclass(frozen=True)
class Tiles:
    """Configurations of one architecture.

    Attributes:
        epilogue: epilogue of a convolution; also statistics alone.
        normalize: application of GroupNorm and SiLU.
        pool: the fusion gate's pooling of x + y, for this number of channels; with fewer channels the tile has
            proportionally more pixels, and vice versa.
        spatial: the fusion gate's 7x7 convolution; pixels only.
        gate: the fusion gate's last pass; the pixels form a square.
        upsample: bilinear upsampling.
        diffuse: noisy images, and both ends of a student; pixels only.
        pixels: what surrounds the network in fusions of 8-bit images; pixels only.
        first, head: convolutions from and to a single channel; the head always takes all channels.
        convolutions: rules in order of precedence; cuDNN computes a convolution that none applies to. A described tile
            applies to whole rows only.
        downsamplings, upsamplings: the same for strided and transposed convolutions; the pixels of a rule are those of
            the smaller map.
        sources: whether the first convolution reads both images, and the convolution of the interval is ours and reads
            the interval, as the network gets them: in float32, without a cast or a copy before.
        products: whether the matrix products of attention and of the fusion levels are our 1x1 convolutions, where
            `convolutions` has rules for them, not cuBLAS's.
        gates: rules in order of precedence; a fusion gate that none applies to takes four launches.
        attention, attention_float32: tiles by the largest number of channels, in half precision and in float32.
    """

    epilogue: Tile = Tile(32, 64)
    normalize: Tile = Tile(32, 64)
    pool: Tile = Tile(16, 128)
    spatial: Tile = Tile(128, 1)
    gate: Tile = Tile(64, 32)
    upsample: Tile = Tile(32, 64)
    diffuse: Tile = Tile(1024, 1)
    pixels: Tile = Tile(256, 1)
    first: Tile = Tile(128, 64)
    head: Tile = Tile(64, 1)
    convolutions: tuple[ConvolutionRule, ...] = ()
    downsamplings: tuple[ConvolutionRule, ...] = ()
    upsamplings: tuple[ConvolutionRule, ...] = ()
    sources: bool = False
    products: bool = False
    gates: tuple[GateRule, ...] = ()
    attention: dict[int, AttentionTile] = field(
        default_factory=lambda: {128: AttentionTile(32, 64, 4, 2), 256: AttentionTile(32, 32, 4, 2)}
    )
    attention_float32: dict[int, AttentionTile] = field(
        default_factory=lambda: {128: AttentionTile(16, 32, 4, 1), 256: AttentionTile(16, 16, 4, 1)}
    )

    def convolution(self, inputs: int, outputs: int, pixels: int) -> Iterator[ConvolutionTile]:
        """The tiles for a convolution with `pixels` over the whole batch, the best one first."""
        return _applying(self.convolutions, inputs, outputs, pixels)

    def resampling(self, up: bool, inputs: int, outputs: int, pixels: int) -> Iterator[ConvolutionTile]:
        """Like `convolution`, for a transposed convolution or, unless `up`, a strided one."""
        return _applying(self.upsamplings if up else self.downsamplings, inputs, outputs, pixels)

    def gate_rule(self, channels: int, pixels: int) -> GateRule | None:
        """The first rule for a fusion gate of maps of this size."""
        rules = (rule for rule in self.gates if channels <= rule.channels and pixels <= rule.pixels)
        return next(rules, None)


# By compute capability times ten.
ARCHITECTURES: dict[int, Tiles] = {
    80: Tiles(),
    86: Tiles(),
    87: Tiles(),
    89: Tiles(),
    90: Tiles(
        epilogue=Tile(16, 64, 2),
        head=Tile(16, 1, 2),
        convolutions=(
            ConvolutionRule(128, 64, 2**12, ConvolutionTile(32, 32, 128, 4, 4)),
            ConvolutionRule(32, 32, 2**13, ConvolutionTile(32, 32, 32, 2, 5)),
            ConvolutionRule(32, 32, ANY, ConvolutionTile(128, 32, 32, 4, 3)),
            ConvolutionRule(128, 64, 2**13, ConvolutionTile(32, 32, 128, 4, 3)),
            ConvolutionRule(128, 64, ANY, ConvolutionTile(128, 64, 64, 4, 3)),
            ConvolutionRule(ANY, ANY, 2**11, ConvolutionTile(64, 64, 128, 4, 4, described=True)),
            ConvolutionRule(ANY, ANY, 2**13, ConvolutionTile(64, 128, 128, 4, 4, described=True)),
            ConvolutionRule(ANY, ANY, 2**12, ConvolutionTile(64, 64, 64, 4, 4)),
            ConvolutionRule(ANY, ANY, 2**15, ConvolutionTile(64, 128, 64, 4, 4, described=True)),
            ConvolutionRule(ANY, ANY, ANY, ConvolutionTile(128, 128, 64, 4, 3, described=True)),
        ),
    ),
    110: Tiles(),
    120: Tiles(),
}


def tiles_for(architecture: int) -> Tiles:
    """Configurations for compute capability `architecture` / 10, or the nearest known one below it.

    Raises:
        ValueError: the GPU is older than Triton supports.
    """
    known = [number for number in ARCHITECTURES if number <= architecture]
    if not known:
        raise ValueError(f"compute capability {architecture / 10}: the kernels need 8.0 or later")
    return ARCHITECTURES[max(known)]
