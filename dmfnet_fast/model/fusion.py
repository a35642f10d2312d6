"""Stage II: the network that fuses the denoiser's features of both images, coarsest level first.

Sub-modules are named as in the published checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmfnet_fast.config import ModelConfig

CHANNEL_REDUCTION = 8


def _conv1x1_conv3x3(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU())


def upsample2(x: Tensor) -> Tensor:
    """Bilinear upsampling x2 with aligned corners."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class TimestepMerge(nn.Module):
    """Merges the features of one image at all T timesteps: (N, TD, H, W) -> (N, D, H, W)."""

    def __init__(self, channels: int, timesteps: int) -> None:
        super().__init__()
        self.block = _conv1x1_conv3x3(timesteps * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ChannelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // CHANNEL_REDUCTION
        self.ca = nn.Sequential(nn.Conv2d(channels, reduced, 1), nn.ReLU(), nn.Conv2d(reduced, channels, 1))

    def forward(self, s: Tensor) -> Tensor:
        return self.ca(s.mean(dim=(2, 3), keepdim=True))


class SpatialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sa = nn.Conv2d(2, 1, 7, padding=3, padding_mode="reflect")

    def forward(self, s: Tensor) -> Tensor:
        return self.sa(torch.cat([s.mean(dim=1, keepdim=True), s.amax(dim=1, keepdim=True)], dim=1))


class PixelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pa2 = nn.Conv2d(2 * channels, channels, 3, padding=1, padding_mode="reflect", groups=channels)

    def forward(self, s: Tensor, q: Tensor) -> Tensor:
        interleaved = torch.stack([s, q], dim=2).flatten(1, 2)  # s_0, q_0, s_1, q_1, ...
        return torch.sigmoid(self.pa2(interleaved))


class AdaptiveAttention(nn.Module):
    """Weighted sum of x and y: w x + (1 - w) y + s, where s = x + y, w = s g, and g is the attention gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ca = ChannelAttention(channels)
        self.sa = SpatialAttention()
        self.pa = PixelAttention(channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        s = x + y
        w = s * self.pa(s, self.ca(s) + self.sa(s))
        return w * x + (1 - w) * y + s


class FusionLevel(nn.Module):
    """Attention fusion of one level, combined with the outputs of coarser levels.

    `previous` is the output of the next coarser level, and `before` that of the level two steps coarser.
    """

    def __init__(self, channels: int, outputs: int, before: int | None) -> None:
        super().__init__()
        self.att = AdaptiveAttention(channels)
        if before is not None:
            self.block1 = _conv1x1_conv3x3(before, channels)
        self.block = _conv1x1_conv3x3(channels, outputs)

    def forward(self, x: Tensor, y: Tensor, previous: Tensor | None, before: Tensor | None) -> Tensor:
        f = self.att(x, y)
        if previous is not None:
            f = f + upsample2(previous)
        if before is not None:
            f = f + upsample2(self.block1(upsample2(before)))
        return self.block(f)


class Head(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FusionNetwork(nn.Module):
    """Five levels of timestep merge and attention fusion, and the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        base = config.channels
        widths = [2 * base, base, base, base, base]  # of the taps, coarsest first
        outputs = [*widths[1:], base]
        decoder: list[nn.Module] = []
        for level, (width, output) in enumerate(zip(widths, outputs, strict=True)):
            decoder.append(TimestepMerge(width, len(config.timesteps)))
            decoder.append(FusionLevel(width, output, before=outputs[level - 2] if level >= 2 else None))
        self.decoder = nn.ModuleList(decoder)
        self.rgb_decode2 = Head(base, base // 2)
        self.rgb_decode1 = Head(base // 2, 1)
        # Not in the paper: adds the interval to the input of the head, as rgb_decode2 takes the features only.
        self.interval = nn.Conv2d(2, base // 2, 3, padding=1, bias=False) if config.interval else None

    def forward(self, features_a: list[Tensor], features_b: list[Tensor], interval: Tensor | None = None) -> Tensor:
        """Fuse five features of each image, coarsest first, with the channels of all T timesteps concatenated.

        The features have the shapes (N, 2TC, H/16, W/16), then (N, TC, ...) up to (N, TC, H, W). Returns (N, 1, H, W):
        the fused luminance in [-1, 1] or, for networks that take an `interval` (N, 2, H, W), the change to add to the
        brighter source.
        """
        return self.head(self.hidden(features_a, features_b, interval))

    def hidden(self, features_a: list[Tensor], features_b: list[Tensor], interval: Tensor | None = None) -> Tensor:
        """The input of the head, (N, C/2, H, W), for the arguments of `forward`."""
        return self.before_head(self.decoded(features_a, features_b), interval)

    def before_head(self, decoded: Tensor, interval: Tensor | None) -> Tensor:
        """The input of the head, (N, C/2, H, W), computed from the result of `decoded`."""
        hidden = self.rgb_decode2(decoded)
        if self.interval is not None:
            assert interval is not None
            hidden = hidden + self.interval(interval.to(hidden.dtype))
        return hidden

    def decoded(self, features_a: list[Tensor], features_b: list[Tensor]) -> Tensor:
        """The result of the finest level, (N, C, H, W)."""
        outputs: list[Tensor] = []
        for level, (a, b) in enumerate(zip(features_a, features_b, strict=True)):
            merge, fuse = self.decoder[2 * level], self.decoder[2 * level + 1]
            outputs.append(
                fuse(
                    merge(a),
                    merge(b),
                    outputs[level - 1] if level >= 1 else None,
                    outputs[level - 2] if level >= 2 else None,
                )
            )
        return outputs[-1]

    def head(self, hidden: Tensor) -> Tensor:
        """The result of `forward`, computed from `hidden`."""
        result = self._last(F.leaky_relu(hidden, 0.2))
        return torch.tanh(result) if self.interval is None else result

    def _last(self, hidden: Tensor) -> Tensor:
        weight = self.rgb_decode1.conv.weight
        if hidden.dtype == weight.dtype:
            return self.rgb_decode1(hidden)
        # The output stays float32 even under autocast: bfloat16's spacing of 1/256 near black is half a gray level.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.rgb_decode1(hidden.to(weight.dtype))
