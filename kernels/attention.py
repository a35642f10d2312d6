"""Single-head self-attention over all pixels, with an online softmax."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import launch
from kernels.launch import Launch, Plan, channels_last, tiles_of


def reference(qkv: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v for every pixel, computed in float32.

    Args:
        qkv: queries, keys and values, concatenated over channels: (N, 3C, H, W).

    Returns:
        (N, C, H, W).
    """
    wide = torch.promote_types(qkv.dtype, torch.float32)
    query, key, value = qkv.flatten(2).to(wide).chunk(3, 1)  # each (N, C, tokens)
    weights = torch.softmax(query.transpose(1, 2) @ key / math.sqrt(key.shape[1]), -1)
    attended = value @ weights.transpose(1, 2)
    return channels_last(attended.unflatten(2, qkv.shape[2:]).to(qkv.dtype))


@triton.jit
def attention_kernel(
    qkv,  # (N, tokens, 3C): q, k, v
    out,  # (N, tokens, C)
    tokens,
    channels,
    scale,  # log2(e) / sqrt(C)
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,  # C rounded up to a power of two
):
    n = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    c = tl.arange(0, CHANNELS)
    channel_mask = c < channels
    query_mask = (t < tokens)[:, None] & channel_mask[None, :]
    qkv += n * tokens * 3 * channels
    query = tl.load(qkv + t[:, None] * 3 * channels + c[None, :], mask=query_mask, other=0.0)  # [QUERIES, CHANNELS]

    # Online softmax: when the running maximum grows, earlier sums are rescaled. In base 2, as GPUs have exp2.
    running_max = tl.full((QUERIES,), float("-inf"), tl.float32)
    running_sum = tl.zeros((QUERIES,), tl.float32)
    accumulator = tl.zeros((QUERIES, CHANNELS), tl.float32)
    for start in range(0, tokens, KEYS):
        k = start + tl.arange(0, KEYS)
        key_mask = k < tokens
        mask = key_mask[:, None] & channel_mask[None, :]
        pointers = qkv + k[:, None] * 3 * channels + c[None, :]
        key = tl.load(pointers + channels, mask=mask, other=0.0)  # [KEYS, CHANNELS]
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(key_mask[None, :], scores, float("-inf"))
        new_max = tl.maximum(running_max, tl.max(scores, 1))
        weights = tl.exp2(scores - new_max[:, None])
        correction = tl.exp2(running_max - new_max)
        value = tl.load(pointers + 2 * channels, mask=mask, other=0.0)
        running_sum = running_sum * correction + tl.sum(weights, 1)
        accumulator = tl.dot(weights.to(value.dtype), value, accumulator * correction[:, None], input_precision="ieee")
        running_max = new_max
    accumulator = accumulator / running_sum[:, None]
    out += n * tokens * channels
    tl.store(out + t[:, None] * channels + c[None, :], accumulator.to(out.dtype.element_ty), mask=query_mask)


def plan(qkv: Tensor) -> Plan:
    """Plans a single launch."""
    qkv = channels_last(qkv)
    n, triple, height, width = qkv.shape
    channels, tokens = triple // 3, height * width
    tiles = tiles_of(qkv)
    by_width = tiles.attention_float32 if qkv.dtype == torch.float32 else tiles.attention
    if channels > max(by_width):
        raise ValueError(f"attention over {channels} channels: the kernel takes up to {max(by_width)}")
    tile = by_width[min(width for width in by_width if width >= channels)]
    out = launch.new_feature_map((n, channels, height, width), qkv)
    call = Launch(
        attention_kernel,
        (triton.cdiv(tokens, tile.queries), n),
        {
            "qkv": qkv,
            "out": out,
            "tokens": tokens,
            "channels": channels,
            "scale": math.log2(math.e) / math.sqrt(channels),
        },
        # Matrix units take at least 16 channels.
        {"QUERIES": tile.queries, "KEYS": tile.keys, "CHANNELS": max(16, triton.next_power_of_2(channels))},
        tile.warps,
        tile.stages,
    )
    return (out,), [call]


def _attention(qkv: Tensor) -> Tensor:
    return launch.run(plan(qkv))[0]


def _fake(qkv: Tensor) -> Tensor:
    n, triple, height, width = qkv.shape
    return launch.new_feature_map((n, triple // 3, height, width), qkv)


attention = launch.register("attention", "(Tensor qkv) -> Tensor", reference, _attention, _fake)
