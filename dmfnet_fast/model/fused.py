"""The optimized network on our Triton kernels, which fuse the operations around convolutions and matrix products.

All timesteps and images of all pairs go through the denoiser as one batch, ordered by timestep, image and pair. Feature
maps are passed between blocks together with the statistics of their channels, which are computed when the map is
written and save GroupNorm a pass over it. On a CPU the operators run their reference implementations, so that the
structure can be tested without a GPU.
"""

from __future__ import annotations

from typing import NamedTuple, cast

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
    of_kind,
)
from dmfnet_fast.model.side_stream import beside, join, side_stream
from dmfnet_fast.model.student import Student, from_brighter
from kernels import convolution as _convolutions
from kernels import resampling as _resampling
from kernels import single_channel as _single
from kernels import student_ends as _ends
from kernels.attention import attention
from kernels.convolution import convolution, convolution_with_statistics
from kernels.convolution_epilogue import convolution_epilogue, convolution_epilogue_with_statistics
from kernels.diffuse import diffuse
from kernels.fusion_gate import fusion_gate
from kernels.group_norm_silu import group_norm_silu
from kernels.launch import on_gpu, tiles_of
from kernels.upsample_add import upsample_add

MOST_CHANNELS = 256  # supported by the attention kernel
MOST_SOURCES = 3  # inputs that our convolution kernel can sum over


class FeatureWithStats(NamedTuple):
    """A feature map (N, C, H, W) and the statistics of its channels."""

    values: Tensor
    statistics: Tensor


class Sources(NamedTuple):
    """Both images, (N, 1, H, W) each, in float32: what the denoiser takes in place of one batch in its own type."""

    a: Tensor
    b: Tensor


def _ours(x: Tensor, weight: Tensor, statistics: bool = False) -> bool:
    """Whether our convolution kernel is the faster one here; if not, cuDNN's is used, followed by an epilogue."""
    return _convolutions.tile_for(x, weight, statistics) is not None


def _convolved(
    x: Tensor, conv: nn.Conv2d, bias: Tensor | None, relu: bool = False, residual: Tensor | None = None
) -> Tensor:
    """relu(conv(x) + bias) + residual, where `relu` and `residual` are optional, for a 3x3 convolution.

    `bias` replaces the convolution's own bias, which is ignored.
    """
    if _ours(x, conv.weight):
        return convolution(x, conv.weight, None, None, None, None, bias, residual, relu)
    return convolution_epilogue(F.conv2d(x, conv.weight, padding=1), bias, residual, relu)


def _with_statistics(h: Tensor, bias: Tensor | None, residual: Tensor | None) -> FeatureWithStats:
    """h + bias + residual, with its channel statistics."""
    return FeatureWithStats(*convolution_epilogue_with_statistics(h, bias, residual, False))


class PixelLinear(nn.Module):
    """A 1x1 convolution as a matrix product over the pixels of a channels-last feature map.

    Args:
        conv: the convolution.
        part: the input channels to use.
    """

    def __init__(self, conv: nn.Conv2d, part: slice = slice(None)) -> None:
        super().__init__()
        kernel = conv.weight.detach()[:, part].contiguous()  # (outputs, inputs, 1, 1)
        self.weight = nn.Parameter(kernel.flatten(1).t().contiguous())  # (inputs, outputs)
        self.register_buffer("kernel", kernel, persistent=False)

    kernel: Tensor

    def forward(self, x: Tensor, bias: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """The product plus `bias`; with `onto`, the product is added to that in place, without `bias`."""
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        if onto is not None:
            onto.permute(0, 2, 3, 1).view(-1, onto.shape[1]).addmm_(rows, self.weight)
            return onto
        product = rows @ self.weight if bias is None else torch.addmm(bias, rows, self.weight)
        return product.view(x.shape[0], x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)


def _product_is_ours(x: Tensor, linear: PixelLinear, statistics: bool = False) -> bool:
    """Whether a product without a ReLU is our 1x1 convolution, by the rules for the GPU."""
    # on_gpu comes first: in graphs for engines, `linear` is replaced by a plain convolution, which has no `kernel`.
    return on_gpu(x) and tiles_of(x).products and _ours(x, linear.kernel, statistics)


def _linear(linear: PixelLinear, x: Tensor, bias: Tensor | None) -> Tensor:
    """linear(x) + bias."""
    if _product_is_ours(x, linear):
        return convolution(x, linear.kernel, None, None, None, None, bias, None, False)
    return linear(x, bias)


def _linear_relu(linear: PixelLinear, x: Tensor, bias: Tensor | None) -> Tensor:
    """relu(linear(x) + bias)."""
    # on_gpu comes first: in graphs for engines, `linear` is replaced by a plain convolution, which has no `kernel`.
    if on_gpu(x) and _ours(x, linear.kernel):
        return convolution(x, linear.kernel, None, None, None, None, bias, None, True)
    return convolution_epilogue(linear(x), bias, None, True)


class FusedNorm(nn.Module):
    """GroupNorm with optional SiLU."""

    def __init__(self, norm: nn.GroupNorm, silu: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu

    def forward(self, x: FeatureWithStats, skip: FeatureWithStats | None = None) -> Tensor:
        """Normalize `x`, or the concatenation of `x` and `skip`."""
        values, statistics = (None, None) if skip is None else skip
        return group_norm_silu(*x, values, statistics, None, self.weight, self.bias, self.groups, self.eps, self.silu)

    def biased(self, h: Tensor, statistics: Tensor | None, biases: Tensor) -> Tensor:
        """Normalize h + biases, where `biases` has a row per timestep; `statistics` are those of h, if known."""
        parameters = self.weight, self.bias, self.groups, self.eps, self.silu
        return group_norm_silu(h, statistics, None, None, biases, *parameters)


class FusedConv(Resample):
    """The first convolution of the denoiser, or one that changes the resolution."""

    by_phase: Tensor

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv, self.bias, self.outputs = conv, conv.bias, conv.out_channels
        self.up = isinstance(conv, nn.ConvTranspose2d)
        if self.up:
            self.register_buffer("by_phase", _resampling.by_phase(conv.weight.detach()), persistent=False)
        conv.bias = None

    def forward(self, x: Tensor | Sources | FeatureWithStats) -> FeatureWithStats:
        if isinstance(x, Sources):
            assert self.bias is not None
            return FeatureWithStats(*_single.first_convolution(x.a, self.conv.weight, self.bias, x.b))
        values = x.values if isinstance(x, FeatureWithStats) else x
        half = values.dtype != torch.float32
        if values.shape[1] == 1 and half and on_gpu(values) and _single.first_fits(values):
            assert self.bias is not None
            return FeatureWithStats(*_single.first_convolution(values, self.conv.weight, self.bias, None))
        if _resampling.tile_for(values, self.outputs, self.up) is not None:
            assert self.bias is not None
            if self.up:
                return FeatureWithStats(*_resampling.upsampling_convolution(values, self.by_phase, self.bias))
            return FeatureWithStats(*_resampling.downsampling_convolution(values, self.conv.weight, self.bias))
        return _with_statistics(self.conv(values), self.bias, None)


class FusedAttention(nn.Module):
    """Self-attention with a residual connection."""

    def __init__(self, block: SelfAttention) -> None:
        super().__init__()
        self.norm = FusedNorm(block.norm, silu=False)
        self.qkv, self.out, self.bias = PixelLinear(block.qkv), PixelLinear(block.out), block.out.bias

    def forward(self, x: FeatureWithStats) -> FeatureWithStats:
        qkv = _linear(self.qkv, self.norm(x), None)
        if qkv.shape[1] <= 3 * MOST_CHANNELS:
            attended = attention(qkv)
        else:
            tokens = qkv.unflatten(1, (3, 1, -1)).flatten(4).transpose(3, 4).unbind(1)
            attended = F.scaled_dot_product_attention(*tokens).transpose(2, 3).flatten(1, 2).view_as(x.values)
        if _product_is_ours(attended, self.out, statistics=True):
            no_shortcuts = None, None, None, None
            return FeatureWithStats(
                *convolution_with_statistics(attended, self.out.kernel, *no_shortcuts, self.bias, x.values, False)
            )
        return _with_statistics(self.out(attended), self.bias, x.values)


class FusedBlock(nn.Module):
    """A fixed-level block that takes one feature map, or two in place of their concatenation.

    Args:
        block: the original block, which takes the concatenation; it is modified.
        first: number of channels of the first feature map.
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

    def forward(self, x: FeatureWithStats, _: int, skip: FeatureWithStats | None = None) -> FeatureWithStats:
        h = self.norm1(x, skip)
        statistics = None
        if _ours(h, self.conv1.weight, statistics=True):
            no_shortcuts = None, None, None, None
            h, statistics = convolution_with_statistics(h, self.conv1.weight, *no_shortcuts, None, None, False)
        else:
            h = self.conv1(h)
        result = self._second(self.norm2.biased(h, statistics, self.biases), x, skip)
        return result if self.attention is None else self.attention(result)

    def _second(self, h: Tensor, x: FeatureWithStats, skip: FeatureWithStats | None) -> FeatureWithStats:
        """The second convolution plus the shortcut."""
        if _ours(h, self.conv2.weight, statistics=True):
            sources = [x.values] if skip is None else [x.values, skip.values]
            shortcuts: list[Tensor | None] = []
            for source, shortcut in zip(sources, self.shortcuts, strict=False):
                shortcuts += source, cast("PixelLinear", shortcut).kernel
            shortcuts += [None] * (4 - len(shortcuts))
            residual = None if self.shortcuts else x.values
            return FeatureWithStats(
                *convolution_with_statistics(h, self.conv2.weight, *shortcuts, self.bias, residual, False)
            )
        h = self.conv2(h)
        if self.shortcuts:
            shortcut = self.shortcuts[0](x.values, self.bias)
            if skip is not None:
                shortcut = self.shortcuts[1](skip.values, onto=shortcut)
            return _with_statistics(h, None, shortcut)
        return _with_statistics(h, self.bias, x.values)


class FusedMerge(nn.Module):
    """The timestep merge of both images, in one batch."""

    def __init__(self, merge: SplitMerge) -> None:
        super().__init__()
        projections = [of_kind(projection, nn.Conv2d) for projection in merge.projections]
        self.projections = nn.ModuleList(PixelLinear(projection) for projection in projections)
        self.conv = of_kind(merge.conv, nn.Conv2d)
        self.first_bias, self.bias = projections[0].bias, self.conv.bias
        self.conv.bias = None

    def forward(self, feature: Tensor) -> Tensor:
        """Merge features (T x 2 x N, D, H, W) to (2 x N, D, H, W)."""
        return _convolved(self._merged(feature), self.conv, self.bias, True)

    def _merged(self, feature: Tensor) -> Tensor:
        """The first convolution and its ReLU."""
        # A cast, as `of_kind` would fail while a graph is traced, when modules are wrapped in others.
        projections = cast("list[PixelLinear]", list(self.projections))
        features = feature.tensor_split(len(projections))
        if on_gpu(feature) and len(projections) <= MOST_SOURCES and _ours(features[0], projections[0].kernel):
            kernels = [projection.kernel for projection in projections]
            others: list[tuple[Tensor | None, Tensor | None]] = list(zip(features[1:], kernels[1:], strict=True))
            (more, more_kernel), (last, last_kernel), *_ = [*others, (None, None), (None, None)]
            return convolution(
                features[0], kernels[0], more, more_kernel, last, last_kernel, self.first_bias, None, True
            )
        total = projections[0](features[0])
        for projection, source in zip(projections[1:], features[1:], strict=True):
            total = projection(source, onto=total)
        return convolution_epilogue(total, self.first_bias, None, True)


class FusedGate(nn.Module):
    """Adaptive attention fusion in one operator."""

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
        return _convolved(_linear_relu(self.first, x, self.first_bias), self.second, self.bias, True)


class FusedLevel(nn.Module):
    """A joint fusion level."""

    def __init__(self, level: JointLevel) -> None:
        super().__init__()
        self.gate = FusedGate(level.att)
        self.block = FusedPair(of_kind(level.block[0], nn.Conv2d), of_kind(level.block[2], nn.Conv2d))
        if isinstance(level.project, nn.Conv2d):
            self.project, self.project_bias = PixelLinear(level.project), level.project.bias
            self.conv = of_kind(level.conv, nn.Conv2d)
            self.bias = self.conv.bias
            self.conv.bias = None

    def coarser(self, previous: Tensor | None, before: Tensor | None) -> Tensor | None:
        """What the outputs of the two coarser levels contribute, at half this level's resolution."""
        if previous is None or before is None:
            return previous
        h = upsample_add(_linear(self.project, before, self.project_bias), None, True)
        return _convolved(h, self.conv, self.bias, True, previous)

    def forward(self, x: Tensor, y: Tensor, coarser: Tensor | None) -> Tensor:
        """Fuse the merged features of both images, and add the result of `coarser`."""
        f = self.gate(x, y)
        if coarser is not None:
            f = upsample_add(coarser, f, False)
        return self.block(f)


class FusedHead(nn.Module):
    """The first convolution of the head."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """The convolution plus `added`, where there is something to add."""
        if _ours(x, self.conv.weight):
            return convolution(x, self.conv.weight, None, None, None, None, self.conv.bias, added, False)
        result = self.conv(x)
        return result if added is None else result + added


class FusedPasses(nn.Module):
    """DM-FNet with fixed noise levels, which runs the denoiser on all timesteps and images in one batch.

    Args:
        net: the network after `inference.REWRITES_BEFORE_KERNELS`. Its modules are taken over; it cannot be used
            afterwards.
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
        denoiser.add_module("init_conv", FusedConv(denoiser.init_conv))
        self.fusion.add_module("rgb_decode2", FusedHead(self.fusion.rgb_decode2.conv))
        decoder = self.fusion.decoder
        self.fusion.merges = nn.ModuleList(FusedMerge(of_kind(merge, SplitMerge)) for merge in decoder[::2])
        self.fusion.levels = nn.ModuleList(FusedLevel(of_kind(level, JointLevel)) for level in decoder[1::2])
        del self.fusion.decoder

    def _diffused(self, a: Tensor, b: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
        return diffuse(a, b, noise, self.levels, self.sigmas, dtype)

    def _decoded(self, noisy: Tensor, pairs: int) -> Tensor:
        """The result of the finest fusion level, (N, C, H, W), for `noisy` of `pairs` pairs.

        A level needs only what the denoiser has computed by then, so it can run beside the rest of the denoiser.
        """
        merges, levels = self.fusion.merges, self.fusion.levels
        assert isinstance(merges, nn.ModuleList)
        assert isinstance(levels, nn.ModuleList)
        side = side_stream()
        outputs: list[Tensor | None] = [None, None]
        read = []  # by the side stream, so not to be freed before it has joined
        for merge, level, feature in zip(merges, levels, self.denoiser.features(noisy, 0), strict=True):
            if side is not None:
                read.append(feature)
            with beside(side, after=False):
                # A cast, as `of_kind` would fail while a graph is traced, when modules are wrapped in others.
                coarser = cast("FusedLevel", level).coarser(outputs[-1], outputs[-2])
            with beside(side):
                merged = merge(feature.values)
                outputs.append(level(merged[:pairs], merged[pairs:], coarser))
        join(side)
        finest = outputs[-1]
        assert finest is not None
        return finest

    def forward(self, a: Tensor, b: Tensor, noise: Tensor | None = None, interval: Tensor | None = None) -> Tensor:
        """As `DMFNet.forward`."""
        dtype = of_kind(self.denoiser.init_conv, FusedConv).conv.weight.dtype
        ours = on_gpu(a) and tiles_of(a).sources and dtype != torch.float32
        if noise is not None:
            noisy = self._diffused(a, b, noise, dtype)
        elif ours and _single.first_fits(a):
            noisy = cast("Tensor", Sources(a, b))
        else:
            noisy = torch.cat([a, b]).to(dtype)
        decoded = self._decoded(noisy, a.shape[0])
        if not on_gpu(a):
            result = self.fusion.head(self.fusion.before_head(decoded, interval))
            return result if interval is None else from_brighter(result, a, b, interval)
        last = of_kind(self.fusion.rgb_decode1.conv, nn.Conv2d)
        assert last.bias is not None
        added = None
        of_interval = self.fusion.interval
        if of_interval is not None:
            assert interval is not None
            if ours:
                added = _single.interval_convolution(interval, of_interval.weight)
            else:
                # cuDNN works in channels-last, and would convert what it is given after this conversion.
                added = of_interval(interval.to(decoded.dtype, memory_format=torch.channels_last))
        hidden = self.fusion.rgb_decode2(decoded, added)
        result = _single.head(hidden, last.weight, last.bias, interval is None)
        return result if interval is None else _ends.student_change(result, a, b, interval, 1)


class FusedStudent(nn.Module):
    """A student whose pointwise operations are fused into its convolutions.

    Args:
        net: the student, whose modules are taken over.
    """

    def __init__(self, net: Student) -> None:
        super().__init__()
        self.config, self.net = net.config, net

    def forward(self, a: Tensor, b: Tensor, interval: Tensor) -> Tensor:
        """As `Student.forward`."""
        net, factor = self.net, self.config.factor
        if not on_gpu(a):
            return net(a, b, interval)
        inputs = _ends.student_inputs(a, b, interval, factor, net.first.weight.dtype)
        h = _convolved(inputs, net.first, net.first.bias, relu=True)
        for block in net.blocks:
            layers = of_kind(block, nn.Sequential)
            first, second = of_kind(layers[0], nn.Conv2d), of_kind(layers[2], nn.Conv2d)
            h = _convolved(_convolved(h, first, first.bias, relu=True), second, second.bias, residual=h)
        return _ends.student_change(_convolved(h, net.last, net.last.bias), a, b, interval, factor)
