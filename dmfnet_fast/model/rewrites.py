"""Rewrites of DM-FNet for inference: the same function, with less arithmetic and memory traffic.

Every rewrite is exact up to rounding and is tested separately against the trained network; `inference.optimize` applies
them. One further rewrite was rejected: as the first convolution is linear, its response to the image could be shared by
all timesteps. With a single input channel, however, that convolution is 0.02% of the arithmetic, and the outputs for
all timesteps would still have to be written.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmfnet_fast.diffusion.schedule import fusion_levels
from dmfnet_fast.model.denoiser import TAPS, UP_BLOCKS, Block, Resample, Upsample
from dmfnet_fast.model.fusion import AdaptiveAttention, FusionLevel, FusionNetwork, TimestepMerge, upsample2
from dmfnet_fast.model.layout import store_channels_last
from dmfnet_fast.model.network import DMFNet
from dmfnet_fast.model.student import from_brighter

Kind = TypeVar("Kind", bound=nn.Module)


def of_kind(module: object, kind: type[Kind]) -> Kind:
    """`module`, asserted and typed to be of `kind`; containers are typed as holding any module."""
    assert isinstance(module, kind)
    return module


class FixedLevelBlock(nn.Module):
    """A block of the denoiser for fixed noise levels: the noise bias is folded into the first convolution's bias.

    It takes the index of a timestep, 0..T-1, in place of the noise embedding.

    Args:
        block: the original block, whose modules are taken over.
        embeddings: noise embeddings of all timesteps, (T, channels).
    """

    biases: Tensor

    def __init__(self, block: Block, embeddings: Tensor) -> None:
        super().__init__()
        inner = block.res_block
        first, second = inner.block1.block, inner.block2.block
        self.norm1, self.conv1 = of_kind(first[0], nn.GroupNorm), of_kind(first[3], nn.Conv2d)
        self.norm2, self.conv2 = second[0], of_kind(second[3], nn.Conv2d)
        self.res_conv, self.attention = inner.res_conv, block.attn
        with torch.no_grad():
            biases = inner.noise_func.noise_func(embeddings) + self.conv1.bias
        self.register_buffer("biases", biases)  # (T, channels)

    def forward(self, x: Tensor, step: int, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        h = F.conv2d(F.silu(self.norm1(x)), self.conv1.weight, self.biases[step], padding=1)
        return self.attention(self.conv2(F.silu(self.norm2(h))) + self.res_conv(x))


class JoinedBlock(nn.Module):
    """A fixed-level block that takes two tensors in place of their concatenation, which is never written.

    A convolution of a concatenation is the sum of a convolution of each part. A GroupNorm of a concatenation is the
    concatenation of a GroupNorm of each part, provided that no group has channels of both.

    Args:
        block: the original block, which takes the concatenation.
        first: number of channels of the first tensor.
    """

    biases: Tensor

    def __init__(self, block: FixedLevelBlock, first: int) -> None:
        super().__init__()
        parts = slice(0, first), slice(first, None)
        self.norms = nn.ModuleList(_part_of_norm(block.norm1, part) for part in parts)
        self.conv_x, self.conv_skip = (_part_of_conv(block.conv1, part, bias=False) for part in parts)
        shortcut = of_kind(block.res_conv, nn.Conv2d)
        self.shortcuts = nn.ModuleList(_part_of_conv(shortcut, part, bias=part.stop is None) for part in parts)
        self.norm2, self.conv2, self.attention = block.norm2, block.conv2, block.attention
        self.register_buffer("biases", block.biases)

    def forward(self, x: Tensor, step: int, skip: Tensor) -> Tensor:
        h = F.conv2d(F.silu(self.norms[0](x)), self.conv_x.weight, self.biases[step], padding=1)
        h = h + self.conv_skip(F.silu(self.norms[1](skip)))
        shortcut = self.shortcuts[0](x) + self.shortcuts[1](skip)
        return self.attention(self.conv2(F.silu(self.norm2(h))) + shortcut)


def _part_of_norm(norm: nn.GroupNorm, part: slice) -> nn.GroupNorm:
    """The normalization of some of the channels, which must be whole groups."""
    width = len(range(norm.num_channels)[part])
    result = nn.GroupNorm(width * norm.num_groups // norm.num_channels, width, norm.eps)
    result.weight, result.bias = nn.Parameter(norm.weight[part]), nn.Parameter(norm.bias[part])
    return result


def _part_of_conv(conv: nn.Conv2d, part: slice, bias: bool) -> nn.Conv2d:
    """The convolution restricted to some of the input channels."""
    weight = conv.weight[:, part].contiguous()
    assert not isinstance(conv.padding, str)
    (height, width), (above, left) = conv.kernel_size, conv.padding
    result = nn.Conv2d(weight.shape[1], weight.shape[0], (height, width), padding=(above, left), bias=bias)
    result.weight = nn.Parameter(weight)
    if bias:
        result.bias = conv.bias
    return result


class TransposedUpsample(Resample):
    """Nearest-neighbor upsampling x2 and conv3x3 as one 4x4 transposed convolution of stride 2.

    Upsampling repeats every row and column, so that the 3x3 kernel covers only two distinct rows and two distinct
    columns of the input, and taps on the same input pixel can be added. This amounts to four 2x2 convolutions at the
    low resolution, one for each phase of the output pixels, whose results the transposed convolution interleaves. It
    takes 4 instead of 9 multiplications per output pixel and channel pair, 2.25 times less arithmetic.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1)
        with torch.no_grad():
            # A transposed convolution flips the kernel. Each input row is repeated (j = 0, 1), and so is each column
            # (i = 0, 1): the flipped kernel is added once for each copy.
            kernel = sum(F.pad(conv.weight.flip(2, 3), (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1))
            assert isinstance(kernel, Tensor)
            self.conv.weight = nn.Parameter(kernel.transpose(0, 1).contiguous())
        self.conv.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SplitMerge(nn.Module):
    """A timestep merge that takes one timestep at a time, so that no features need to be stored until the last."""

    def __init__(self, merge: TimestepMerge) -> None:
        super().__init__()
        first, conv = of_kind(merge.block[0], nn.Conv2d), merge.block[2]
        width = first.out_channels
        self.projections = nn.ModuleList(
            _part_of_conv(first, slice(n * width, (n + 1) * width), bias=n == 0)
            for n in range(first.in_channels // width)
        )
        self.conv = conv

    def start(self, feature: Tensor) -> Tensor:
        """Start the sum over timesteps with the features of the first one, (N, D, H, W)."""
        return self.projections[0](feature)

    def add(self, total: Tensor, feature: Tensor, step: int) -> Tensor:
        """Add the features of timestep number `step` to the sum."""
        return total + self.projections[step](feature)

    def forward(self, total: Tensor) -> Tensor:
        """Merge, given the sum over all timesteps."""
        return F.relu(self.conv(F.relu(total)))


class SplitAttention(nn.Module):
    """Adaptive attention fusion without the interleaved tensor.

    The grouped convolution takes s and q = c + p, where the channel attention c is constant within each channel and the
    spatial attention p is the same in all channels. Its response to c is c times the sum of the kernel, as reflection
    padding preserves constants. Its response to p is a convolution with a single input channel.
    """

    def __init__(self, attention: AdaptiveAttention) -> None:
        super().__init__()
        self.ca, self.sa = attention.ca, attention.sa
        conv = attention.pa.pa2
        channels = conv.out_channels
        own, other = conv.weight.detach().split(1, dim=1)
        self.own = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", groups=channels)
        self.own.weight, self.own.bias = nn.Parameter(own.contiguous()), conv.bias
        self.space = nn.Conv2d(1, channels, 3, padding=1, padding_mode="reflect", bias=False)
        self.space.weight = nn.Parameter(other.contiguous())
        self.register_buffer("gain", other.sum(dim=(2, 3))[None, :, :, None])  # (1, D, 1, 1)

    gain: Tensor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        s = x + y
        w = s * torch.sigmoid(self.own(s) + self.space(self.sa(s)) + self.gain * self.ca(s))
        return torch.addcmul(s + y, w, x - y)


class JointLevel(nn.Module):
    """A fusion level with a single upsampling to its resolution.

    Bilinear upsampling is linear: up(previous) + up(block1(up(before))) = up(previous + block1(up(before))). It also
    commutes with the 1x1 convolution at the start of block1, which can therefore run before the upsampling, on a
    quarter of the pixels.
    """

    def __init__(self, level: FusionLevel) -> None:
        super().__init__()
        self.att, self.block = level.att, level.block
        self.project, _, self.conv, _ = getattr(level, "block1", [nn.Identity()] * 4)

    def forward(self, x: Tensor, y: Tensor, previous: Tensor | None, before: Tensor | None) -> Tensor:
        f = self.att(x, y)
        if previous is not None and before is not None:
            previous = previous + F.relu(self.conv(F.relu(upsample2(self.project(before)))))
        if previous is not None:
            f = f + upsample2(previous)
        return self.block(f)


class PassByPass(nn.Module):
    """DM-FNet with fixed noise levels, one timestep after the other; each feature is merged as soon as it is computed.

    The modules of `model` are taken over and modified; it cannot be used afterwards.

    Attributes:
        together: whether the denoiser takes both images in one batch; taking them one after the other needs half the
            memory and suits a CPU's cache.
        denoiser, fusion: as in DMFNet, possibly rewritten.
        fixed: whether the noise levels are folded into the denoiser's blocks.
    """

    levels: Tensor
    sigmas: Tensor

    def __init__(self, model: DMFNet, together: bool = False) -> None:
        super().__init__()
        self.config, self.together = model.config, together
        self.denoiser, self.fusion = model.denoiser, model.fusion
        for n in range(0, len(self.fusion.decoder), 2):
            self.fusion.decoder[n] = SplitMerge(of_kind(self.fusion.decoder[n], TimestepMerge))
        levels, sigmas = zip(*fusion_levels(model.config.timesteps), strict=True)
        device = next(model.parameters()).device
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32, device=device))
        self.register_buffer("sigmas", torch.tensor(sigmas, dtype=torch.float32, device=device))
        self.fixed = False

    def _noisy(self, a: Tensor, b: Tensor, noise: Tensor | None, step: int) -> list[Tensor]:
        """The denoiser's inputs at a timestep: a and b, or both in one batch. Diffusion is computed in float32."""
        noisy = [a, b]
        if noise is not None:
            noisy = [self.levels[step] * image + self.sigmas[step] * noise[step, n] for n, image in enumerate(noisy)]
        images = [torch.cat(noisy)] if self.together else noisy
        return [image.to(self.denoiser.init_conv.weight.dtype) for image in images]

    def forward(self, a: Tensor, b: Tensor, noise: Tensor | None = None, interval: Tensor | None = None) -> Tensor:
        """As `DMFNet.forward`."""
        merges = [of_kind(merge, SplitMerge) for merge in self.fusion.decoder[::2]]
        totals: list[list[Tensor]] = [[] for _ in range(1 if self.together else 2)]
        for step in range(len(self.levels)):
            for image, own in zip(self._noisy(a, b, noise, step), totals, strict=True):
                level = step if self.fixed else self.levels[step].expand(len(image), 1)
                for n, feature in enumerate(self.denoiser.features(image, level)):
                    if step == 0:
                        own.append(merges[n].start(feature))
                    else:
                        own[n] = merges[n].add(own[n], feature, step)
        if self.together:
            pairs = a.shape[0]  # with chunk(2) or len(a), torch.export would fix the number of pairs
            totals = [[total[:pairs] for total in totals[0]], [total[pairs:] for total in totals[0]]]
        return finished(self.fusion, totals, a, b, interval)


def finished(
    fusion: FusionNetwork, features: list[list[Tensor]], a: Tensor, b: Tensor, interval: Tensor | None
) -> Tensor:
    """Fuse the features of a and of b; with an interval, the result is added to the brighter source and clamped."""
    result = fusion(features[0], features[1], interval)
    if interval is None:
        return result
    return from_brighter(result, a, b, interval)


def drop_unused_blocks(model: DMFNet) -> None:
    """Remove the blocks of the up-path that come after the last tap, and the output convolution."""
    kept, blocks = [], 0
    for module in model.denoiser.ups:
        kept.append(module)
        blocks += not isinstance(module, Resample)
        if blocks == UP_BLOCKS - min(TAPS):
            break
    model.denoiser.ups = nn.ModuleList(kept)
    del model.denoiser.final_conv


def fold_noise_levels(net: PassByPass) -> None:
    """Fold the noise levels of all timesteps into biases: each block's linear projection of their embeddings."""
    denoiser = net.denoiser
    with torch.no_grad():
        embeddings = denoiser.noise_level_mlp(net.levels[:, None])
    for modules in (denoiser.downs, denoiser.mid, denoiser.ups):
        for n, module in enumerate(modules):
            if isinstance(module, Block):
                modules[n] = FixedLevelBlock(module, embeddings)
    denoiser.noise_level_mlp = nn.Identity()
    net.fixed = True


def upsample_transposed(net: PassByPass) -> None:
    """Replace nearest-neighbor upsampling followed by conv3x3 by a transposed convolution."""
    for n, module in enumerate(net.denoiser.ups):
        if isinstance(module, Upsample):
            net.denoiser.ups[n] = TransposedUpsample(module.conv)


def avoid_concatenations(net: PassByPass) -> None:
    """Let the up-path's blocks take feature map and skip connection as two tensors; noise levels must be folded before.

    The concatenation stays where a group of the GroupNorm has channels of both, which depends on the width. With
    C channels in groups of 4, these are the two places at which 2C and C channels meet, at the low resolutions H/16
    and H/8.
    """
    denoiser = net.denoiser
    skips = [denoiser.init_conv.out_channels]
    for down in denoiser.downs:
        block = down.conv2 if isinstance(down, FixedLevelBlock) else down.conv
        skips.append(of_kind(block, nn.Conv2d).out_channels)
    for n, up in enumerate(denoiser.ups):
        if isinstance(up, FixedLevelBlock):
            first = up.norm1.num_channels - skips.pop()
            if first % (up.norm1.num_channels // up.norm1.num_groups) == 0:
                denoiser.ups[n] = JoinedBlock(up, first)


def upsample_once(net: PassByPass) -> None:
    """Combine the two upsamplings of each fusion level, and move a 1x1 convolution before upsampling."""
    for n in range(1, len(net.fusion.decoder), 2):
        net.fusion.decoder[n] = JointLevel(of_kind(net.fusion.decoder[n], FusionLevel))


def split_attention(net: PassByPass) -> None:
    """Replace the interleaved tensor of attention fusion by a sum of convolutions."""
    for level in net.fusion.decoder[1::2]:
        level.att = SplitAttention(of_kind(level.att, AdaptiveAttention))


class ExactNorm(nn.GroupNorm):
    """GroupNorm with a two-pass variance for float32 tensors on a CPU.

    For channels-last tensors on a CPU, PyTorch computes the variance from the mean of squares, whose cancellation
    causes errors of 0.01 if the mean is 50 times the standard deviation. The two-pass variance takes a tenth of turbo's
    time. In half precision other errors are larger, and GPUs and the runtimes of exported graphs are not affected: they
    use the plain GroupNorm.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_exporting():
            return super().forward(x)
        width = x.shape[1] // self.num_groups

        def over_groups(by_channel: Tensor) -> Tensor:
            """The mean over each group's channels, repeated for every channel of the group: (N, C)."""
            return by_channel.unflatten(1, (-1, width)).mean(2).repeat_interleave(width, 1)

        centered = x - over_groups(x.mean((2, 3)))[:, :, None, None]
        variance = over_groups(centered.square().mean((2, 3)))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias[:, None, None], centered, scale[:, :, None, None])


def order_channels_last(net: PassByPass) -> None:
    """Convert the weights to the channels-last layout, and make GroupNorm exact for it."""
    store_channels_last(net)
    for module in list(net.modules()):
        for name, norm in module.named_children():
            if type(norm) is nn.GroupNorm:
                exact = ExactNorm(norm.num_groups, norm.num_channels, norm.eps)
                exact.weight, exact.bias = norm.weight, norm.bias
                setattr(module, name, exact)
