"""Rewrites of DM-FNet for inference: the same function, with less arithmetic and memory traffic.

Every rewrite is exact but for rounding, and is checked on its own against the network as trained; `inference.optimize`
applies them. What was considered and left out: the noise and the image enter the first convolution, which is linear, so
its part on the image could be shared by the timesteps; but with one input channel it is 0.02% of the arithmetic, and
the three outputs would still be written.
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
    """`module`, which containers only know as some module."""
    assert isinstance(module, kind)
    return module


class FixedLevelBlock(nn.Module):
    """A block of the denoiser at the noise levels of inference: its noise bias is part of a convolution's bias.

    Called with the number of a timestep, 0..2, in place of the noise embedding.
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
        self.register_buffer("biases", biases)  # (timesteps, channels)

    def forward(self, x: Tensor, step: int, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        h = F.conv2d(F.silu(self.norm1(x)), self.conv1.weight, self.biases[step], padding=1)
        return self.attention(self.conv2(F.silu(self.norm2(h))) + self.res_conv(x))


class JoinedBlock(nn.Module):
    """A fixed-level block on two tensors that stand for their concatenation, which is never written.

    A convolution of a concatenation is the sum of two, and a GroupNorm is two where no group lies on the seam.

    Args:
        block: takes the concatenation.
        first: channels of the first tensor.
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
    width = len(range(norm.num_channels)[part])
    result = nn.GroupNorm(width * norm.num_groups // norm.num_channels, width, norm.eps)
    result.weight, result.bias = nn.Parameter(norm.weight[part]), nn.Parameter(norm.bias[part])
    return result


def _part_of_conv(conv: nn.Conv2d, part: slice, bias: bool) -> nn.Conv2d:
    """The convolution of some of the input channels."""
    weight = conv.weight[:, part].contiguous()
    assert not isinstance(conv.padding, str)
    (height, width), (above, left) = conv.kernel_size, conv.padding
    result = nn.Conv2d(weight.shape[1], weight.shape[0], (height, width), padding=(above, left), bias=bias)
    result.weight = nn.Parameter(weight)
    if bias:
        result.bias = conv.bias
    return result


class TransposedUpsample(Resample):
    """Nearest x2 and conv3x3 as one transposed convolution of 4x4 with stride 2: 2.25 times less arithmetic.

    Every row of the input becomes two equal ones, so that the 3x3 kernel meets only two different rows and two
    different columns, and those taps that meet the same are added. The result is what four 2x2 convolutions at the
    low resolution, one for each phase of the output pixels, would give, interleaved by the convolution itself.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1)
        with torch.no_grad():
            # Tap k of the convolution is tap 2 - k of a transposed one, for both rows (j = 0, 1) made of one.
            kernel = sum(F.pad(conv.weight.flip(2, 3), (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1))
            assert isinstance(kernel, Tensor)
            self.conv.weight = nn.Parameter(kernel.transpose(0, 1).contiguous())
        self.conv.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SplitMerge(nn.Module):
    """A timestep merge that takes one timestep at a time, so that its features need not wait for the others."""

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
        """The part of the first timestep in the sum, (N, D, H, W)."""
        return self.projections[0](feature)

    def add(self, total: Tensor, feature: Tensor, step: int) -> Tensor:
        """The sum over timesteps so far, with that of `step` added."""
        return total + self.projections[step](feature)

    def forward(self, total: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(total)))


class SplitAttention(nn.Module):
    """Adaptive attention fusion without the interleaved tensor.

    The grouped convolution sees s and q = c + p, where c is constant over a channel and p over the channels: the
    part on c is c times the sum of the kernel (reflection padding keeps it constant), the part on p a convolution
    of one channel.
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
    """A fusion level that upsamples once: bilinear upsampling is linear, and so is a 1x1 convolution.

    up(previous) + up(block1(up(before))) = up(previous + block1(up(before))), and the 1x1 convolution that
    block1 begins with works before its upsampling, on a quarter of the pixels.
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
    """DM-FNet with fixed noise levels, one timestep after the other; each feature is merged as soon as it exists.

    It takes `model` over, which cannot run by itself afterwards.

    Attributes:
        together: whether both images go through the denoiser as one batch; one after the other needs half the
            memory and suits a CPU's cache.
        denoiser, fusion: as in DMFNet, rewritten or not.
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
        self.fixed = False  # whether the blocks know the noise levels

    def _noisy(self, a: Tensor, b: Tensor, noise: Tensor | None, step: int) -> list[Tensor]:
        """What the denoiser gets at a timestep: a and b, or both in one batch. Diffused in float32."""
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
            pairs = a.shape[0]  # torch.export takes chunk(2) and len(a) for a fixed number of pairs
            totals = [[total[:pairs] for total in totals[0]], [total[pairs:] for total in totals[0]]]
        return finished(self.fusion, totals, a, b, interval)


def finished(
    fusion: FusionNetwork, features: list[list[Tensor]], a: Tensor, b: Tensor, interval: Tensor | None
) -> Tensor:
    """What the fusion network makes of both images' features; with an interval, within that."""
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
    """Put the embedding of each of the three noise levels, through each block's linear layer, into a bias."""
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
    """Replace nearest x2 and conv3x3 by what needs no repeated pixels."""
    for n, module in enumerate(net.denoiser.ups):
        if isinstance(module, Upsample):
            net.denoiser.ups[n] = TransposedUpsample(module.conv)


def avoid_concatenations(net: PassByPass) -> None:
    """Let the up-path's blocks, whose noise levels must be folded already, take the path and the skip as two tensors.

    Where a group of the GroupNorm has channels of both, which depends on the width, the concatenation stays: with
    4 channels a group at C, at the two joints of 2C with C channels, which are small (H/16 and H/8).
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
    """Join the two upsamplings of each fusion level, and project before the first of them."""
    for n in range(1, len(net.fusion.decoder), 2):
        net.fusion.decoder[n] = JointLevel(of_kind(net.fusion.decoder[n], FusionLevel))


def split_attention(net: PassByPass) -> None:
    """Replace the fusion's interleaved tensor by sums."""
    for level in net.fusion.decoder[1::2]:
        level.att = SplitAttention(of_kind(level.att, AdaptiveAttention))


class ExactNorm(nn.GroupNorm):
    """GroupNorm whose variance is that of the differences to the mean, in float32 on a CPU too.

    There PyTorch takes a channels-last map's variance from the mean of squares: with a mean that is 50 times the
    deviation its results are wrong by 0.01. It costs a tenth of turbo's time. Half precision has larger errors of its
    own; graphs that others run, and GPUs, do not need this.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_exporting():
            return super().forward(x)
        width = x.shape[1] // self.num_groups

        def over_groups(by_channel: Tensor) -> Tensor:
            """The mean over the channels of each group, for every channel: (N, C)."""
            return by_channel.unflatten(1, (-1, width)).mean(2).repeat_interleave(width, 1)

        away = x - over_groups(x.mean((2, 3)))[:, :, None, None]
        variance = over_groups(away.square().mean((2, 3)))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias[:, None, None], away, scale[:, :, None, None])


def order_channels_last(net: PassByPass) -> None:
    """Store weights so that the channels of a pixel are neighbors in memory."""
    store_channels_last(net)
    for module in list(net.modules()):
        for name, norm in module.named_children():
            if type(norm) is nn.GroupNorm:
                exact = ExactNorm(norm.num_groups, norm.num_channels, norm.eps)
                exact.weight, exact.bias = norm.weight, norm.bias
                setattr(module, name, exact)
