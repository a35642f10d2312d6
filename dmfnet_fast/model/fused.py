"""The optimised network on our own kernels: what surrounds the convolutions and matrix products, in few passes.

All passes of all pairs go through the denoiser as one batch, ordered by timestep, image and pair. A feature map goes
from block to block together with the statistics of its channels, taken when it was written. On a CPU the operators
run their references, so that the structure is tested without a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmfnet_fast.model.denoiser import Downsample, Resample, SelfAttention
from dmfnet_fast.model.fusion import AdaptiveAttention
from dmfnet_fast.model.rewrites import (
    FixedLevelBlock,
    JointLevel,
    PassByPass,
    SplitMerge,
    TransposedUpsample,
    finished,
    of_kind,
)
from dmfnet_fast.neighbours import neighbour

attention = neighbour("kernels.attention").attention
MOST_CHANNELS = 256  # of the kernel for attention
_epilogues = neighbour("kernels.convolution_epilogue")
convolution_epilogue = _epilogues.convolution_epilogue
convolution_epilogue_with_statistics = _epilogues.convolution_epilogue_with_statistics
diffuse = neighbour("kernels.diffuse").diffuse
fusion_gate = neighbour("kernels.fusion_gate").fusion_gate
group_norm_silu = neighbour("kernels.group_norm_silu").group_norm_silu
upsample_add = neighbour("kernels.upsample_add").upsample_add


class Measured(NamedTuple):
    """A feature map (N, C, H, W) and the statistics of its channels."""

    values: Tensor
    statistics: Tensor


def _measured(h: Tensor, bias: Tensor | None, residual: Tensor | None) -> Measured:
    return Measured(*convolution_epilogue_with_statistics(h, bias, residual, False))


def _relu_conv_relu(h: Tensor, first_bias: Tensor | None, conv: nn.Conv2d, bias: Tensor | None) -> Tensor:
    """relu(conv(relu(h + first_bias)) + bias), of a convolution without bias."""
    return convolution_epilogue(conv(convolution_epilogue(h, first_bias, None, True)), bias, None, True)


class PixelLinear(nn.Module):
    """A 1x1 convolution as a matrix product over the pixels of a channels-last feature map.

    Args:
        conv: the convolution.
        part: the input channels that it takes.
    """

    def __init__(self, conv: nn.Conv2d, part: slice = slice(None)) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight[:, part].flatten(1).t().contiguous())  # (inputs, outputs)

    def forward(self, x: Tensor, bias: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """The product, with `bias` added, or added onto `onto`, which is overwritten."""
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        if onto is not None:
            onto.permute(0, 2, 3, 1).view(-1, onto.shape[1]).addmm_(rows, self.weight)
            return onto
        product = rows @ self.weight if bias is None else torch.addmm(bias, rows, self.weight)
        return product.view(x.shape[0], x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)


class FusedNorm(nn.Module):
    """SiLU, unless left out, of GroupNorm."""

    def __init__(self, norm: nn.GroupNorm, silu: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu

    def forward(self, x: Measured, skip: Measured | None = None) -> Tensor:
        """Of `x`, or of the concatenation of `x` and `skip`."""
        other = (None, None) if skip is None else skip
        return group_norm_silu(*x, *other, None, self.weight, self.bias, self.groups, self.eps, self.silu)

    def biased(self, h: Tensor, biases: Tensor) -> Tensor:
        """Of h + biases, of which there is one row for each timestep."""
        return group_norm_silu(h, None, None, None, biases, self.weight, self.bias, self.groups, self.eps, self.silu)


class FusedConv(Resample):
    """The first, a downsampling or an upsampling convolution."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv, self.bias = conv, conv.bias
        conv.bias = None

    def forward(self, x: Tensor | Measured) -> Measured:
        return _measured(self.conv(x.values if isinstance(x, Measured) else x), self.bias, None)


class FusedAttention(nn.Module):
    def __init__(self, block: SelfAttention) -> None:
        super().__init__()
        self.norm = FusedNorm(block.norm, silu=False)
        self.qkv, self.out, self.bias = PixelLinear(block.qkv), PixelLinear(block.out), block.out.bias

    def forward(self, x: Measured) -> Measured:
        qkv = self.qkv(self.norm(x))
        if qkv.shape[1] <= 3 * MOST_CHANNELS:
            attended = attention(qkv)
        else:
            tokens = qkv.unflatten(1, (3, 1, -1)).flatten(4).transpose(3, 4).unbind(1)
            attended = F.scaled_dot_product_attention(*tokens).transpose(2, 3).flatten(1, 2).view_as(x.values)
        return _measured(self.out(attended), self.bias, x.values)


class FusedBlock(nn.Module):
    """A fixed-level block, on one feature map or on two that stand for their concatenation.

    Args:
        block: takes the concatenation.
        first: channels of the first feature map.
    """

    biases: Tensor

    def __init__(self, block: FixedLevelBlock, first: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = FusedNorm(block.norm1), FusedNorm(of_kind(block.norm2, nn.GroupNorm))
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.register_buffer("biases", block.biases)
        self.bias = block.conv2.bias
        self.shortcuts = nn.ModuleList()
        if isinstance(block.res_conv, nn.Conv2d):
            parts = [slice(0, first), slice(first, None)] if first < block.norm1.num_channels else [slice(None)]
            self.shortcuts.extend(PixelLinear(block.res_conv, part) for part in parts)
            assert self.bias is not None
            assert block.res_conv.bias is not None
            self.bias = nn.Parameter(self.bias + block.res_conv.bias, requires_grad=False)
        self.conv1.bias = self.conv2.bias = None
        self.attention = FusedAttention(block.attention) if isinstance(block.attention, SelfAttention) else None

    def forward(self, x: Measured, _: int, skip: Measured | None = None) -> Measured:
        h = self.norm2.biased(self.conv1(self.norm1(x, skip)), self.biases)
        h = self.conv2(h)
        if self.shortcuts:
            shortcut = self.shortcuts[0](x.values, self.bias)
            if skip is not None:
                shortcut = self.shortcuts[1](skip.values, onto=shortcut)
            result = _measured(h, None, shortcut)
        else:
            result = _measured(h, self.bias, x.values)
        return result if self.attention is None else self.attention(result)


class FusedMerge(nn.Module):
    """Both images' timestep merges in one batch."""

    def __init__(self, merge: SplitMerge) -> None:
        super().__init__()
        projections = [of_kind(projection, nn.Conv2d) for projection in merge.projections]
        self.projections = nn.ModuleList(PixelLinear(projection) for projection in projections)
        self.conv = of_kind(merge.conv, nn.Conv2d)
        self.first_bias, self.bias = projections[0].bias, self.conv.bias
        self.conv.bias = None

    def forward(self, feature: Tensor) -> Tensor:
        """(T x 2 x N, D, H, W) -> (2 x N, D, H, W)."""
        size = feature.shape[0] // len(self.projections)
        total = self.projections[0](feature[:size])
        for step in range(1, len(self.projections)):
            total = self.projections[step](feature[step * size : (step + 1) * size], onto=total)
        return _relu_conv_relu(total, self.first_bias, self.conv, self.bias)


class FusedGate(nn.Module):
    """Adaptive attention fusion."""

    def __init__(self, attention: AdaptiveAttention) -> None:
        super().__init__()
        layers = attention.ca.ca[0], attention.ca.ca[2], attention.sa.sa, attention.pa.pa2
        reduce, expand, spatial, pixel = (of_kind(layer, nn.Conv2d) for layer in layers)
        tensors = {
            "reduce_weight": reduce.weight.flatten(1),
            "reduce_bias": reduce.bias,
            "expand_weight": expand.weight.flatten(1),
            "expand_bias": expand.bias,
            "spatial_weight": spatial.weight,
            "spatial_bias": spatial.bias,
            "pixel_weight": pixel.weight.flatten(2).permute(1, 2, 0),
            "pixel_bias": pixel.bias,
        }
        for name, tensor in tensors.items():
            assert tensor is not None
            self.register_buffer(name, tensor.detach().contiguous())
        self._names = list(tensors)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return fusion_gate(x, y, *(getattr(self, name) for name in self._names))


class FusedPair(nn.Module):
    """conv1x1, ReLU, conv3x3, ReLU."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.first_bias = PixelLinear(first), first.bias
        self.second, self.bias = second, second.bias
        second.bias = None

    def forward(self, x: Tensor) -> Tensor:
        return _relu_conv_relu(self.first(x), self.first_bias, self.second, self.bias)


class FusedLevel(nn.Module):
    """A fusion level."""

    def __init__(self, level: JointLevel) -> None:
        super().__init__()
        self.gate = FusedGate(level.att)
        self.block = FusedPair(of_kind(level.block[0], nn.Conv2d), of_kind(level.block[2], nn.Conv2d))
        if isinstance(level.project, nn.Conv2d):
            self.project, self.project_bias = PixelLinear(level.project), level.project.bias
            self.conv = of_kind(level.conv, nn.Conv2d)
            self.bias = self.conv.bias
            self.conv.bias = None

    def forward(self, x: Tensor, y: Tensor, previous: Tensor | None, before: Tensor | None) -> Tensor:
        f = self.gate(x, y)
        if previous is not None and before is not None:
            h = self.conv(upsample_add(self.project(before, self.project_bias), None, True))
            previous = convolution_epilogue(h, self.bias, previous, True)
        if previous is not None:
            f = upsample_add(previous, f, False)
        return self.block(f)


class FusedPasses(nn.Module):
    """DM-FNet with fixed noise levels, all passes in one batch.

    It takes `net` over, whose noise levels must be folded, and whose upsampling, joints and gates as
    `rewrites.optimize` prepares them.
    """

    levels: Tensor
    sigmas: Tensor

    def __init__(self, net: PassByPass) -> None:
        super().__init__()
        self.config, self.denoiser, self.fusion = net.config, net.denoiser, net.fusion
        self.register_buffer("levels", net.levels)
        self.register_buffer("sigmas", net.sigmas)
        denoiser = self.denoiser
        skips = [denoiser.init_conv.out_channels]
        for modules in (denoiser.downs, denoiser.mid, denoiser.ups):
            for n, module in enumerate(modules):
                if isinstance(module, FixedLevelBlock):
                    joint = modules is denoiser.ups
                    inputs, outputs = module.norm1.num_channels, module.conv2.out_channels
                    modules[n] = FusedBlock(module, inputs - skips.pop() if joint else inputs)
                else:
                    assert isinstance(module, Downsample | TransposedUpsample)
                    outputs = module.conv.out_channels
                    modules[n] = FusedConv(module.conv)
                if modules is denoiser.downs:
                    skips.append(outputs)
        denoiser.init_conv = FusedConv(denoiser.init_conv)  # type: ignore[assignment]
        decoder = self.fusion.decoder
        self.fusion.merges = nn.ModuleList(FusedMerge(merge) for merge in decoder[::2])  # type: ignore[arg-type]
        for n, module in enumerate(decoder):
            decoder[n] = FusedLevel(module) if isinstance(module, JointLevel) else nn.Identity()

    def _diffused(self, a: Tensor, b: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
        return diffuse(a, b, noise, self.levels, self.sigmas, dtype)

    def forward(self, a: Tensor, b: Tensor, noise: Tensor | None = None, interval: Tensor | None = None) -> Tensor:
        """As `DMFNet.forward`."""
        dtype = of_kind(self.denoiser.init_conv, FusedConv).conv.weight.dtype
        noisy = torch.cat([a, b]).to(dtype) if noise is None else self._diffused(a, b, noise, dtype)
        merges = self.fusion.merges
        assert isinstance(merges, nn.ModuleList)
        features = self.denoiser.features(noisy, 0)
        merged = [merge(feature.values) for merge, feature in zip(merges, features, strict=True)]
        pairs = a.shape[0]
        halves = [[feature[:pairs] for feature in merged], [feature[pairs:] for feature in merged]]
        return finished(self.fusion, halves, a, b, interval)
