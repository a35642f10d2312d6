"""Emulated half precision: sums and roundings against loops over single products, and networks against references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.artifacts.parity import LIMITS, Reference
from dmfnet_fast.engines import shipped
from export.emulation import (
    ACCUMULATIONS,
    MOST_WORK,
    PRODUCTS_AT_ONCE,
    Accumulation,
    Emulation,
    _affordable,
    _Products,
    in_half_precision,
)
from export.onnx.source import from_content
from export.request import shipped_graph

Half = NDArray[np.float16]


def _half(*shape: int, seed: int = 0) -> Half:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def _sum(products: list[float], accumulation: Accumulation) -> np.float16:
    """Of products in order: each block of PRODUCTS_AT_ONCE is exact, their sum is rounded after each in float16."""
    blocks = [sum(products[n : n + PRODUCTS_AT_ONCE]) for n in range(0, len(products), PRODUCTS_AT_ONCE)]
    if accumulation == "float32":
        return np.float16(sum(blocks))
    total = np.float16(0)
    for block in blocks:
        total = np.float16(float(total) + block)
    return total


def _convolved(x: Half, weight: Half, step: int, accumulation: Accumulation) -> Half:
    """By taps and then channels, padded by one."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = (-(-size // step) for size in x.shape[2:])
    result = np.empty((len(x), len(weight), rows, columns), np.float16)
    for n, out, row, column in np.ndindex(*result.shape):
        seen = padded[n, :, row * step : row * step + 3, column * step : column * step + 3]
        products = (seen * weight[out].astype(np.float64)).transpose(1, 2, 0).ravel().tolist()
        result[n, out, row, column] = _sum(products, accumulation)
    return result


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_convolutions(accumulation: Accumulation, step: int) -> None:
    x, weight = _half(2, 32, 6, 8), _half(4, 32, 3, 3, seed=1)
    result = _Products(accumulation).conv(x, weight, pads=[1, 1, 1, 1], strides=[step, step])
    assert result.dtype == np.float16
    expected = _convolved(x, weight, step, accumulation)
    # The products of a block are added in float32 and not exactly, so a tie may be rounded the other way.
    assert (result == expected).mean() > 0.98
    np.testing.assert_allclose(result.astype(np.float64), expected.astype(np.float64), atol=0.07)


def test_sums_differ() -> None:
    x, weight = _half(1, 64, 8, 8), _half(4, 64, 3, 3, seed=1)
    exact = F.conv2d(torch.tensor(x).double(), torch.tensor(weight).double(), padding=1).numpy()
    errors = {
        accumulation: np.abs(_Products(accumulation).conv(x, weight, pads=[1, 1, 1, 1]) - exact).mean()
        for accumulation in ACCUMULATIONS
    }
    assert errors["float16"] > 2 * errors["float32"] > 0


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_other_products(accumulation: Accumulation) -> None:
    """Within what their sums may lose: grouped, transposed, with a bias, and matrices."""
    products = _Products(accumulation)
    x, square = _half(2, 32, 6, 8), _half(2, 40, 40)

    def wide(array: Half) -> Any:
        return torch.tensor(array).double()

    grouped, bias, transposed = _half(32, 1, 3, 3, seed=1), _half(32, seed=2), _half(32, 8, 4, 4, seed=3)
    results: list[tuple[NDArray[Any], Any]] = [
        (
            products.conv(x, grouped, bias, pads=[1, 1, 1, 1], group=32),
            F.conv2d(wide(x), wide(grouped), wide(bias), padding=1, groups=32),
        ),
        (
            products.conv_transpose(x, transposed, pads=[1, 1, 1, 1], strides=[2, 2]),
            F.conv_transpose2d(wide(x), wide(transposed), stride=2, padding=1),
        ),
        (products.matmul(square, square), wide(square) @ wide(square)),
    ]
    for result, exact in results:
        assert result.dtype == np.float16
        assert result.shape == tuple(exact.shape)
        error = np.abs(result.astype(np.float64) - exact.numpy()).max() / exact.abs().max()
        assert 0 < error < 2e-3


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_float32_is_left_alone(accumulation: Accumulation) -> None:
    """All operators of the graph for CPUs, none of which rounds."""
    graph = from_content(shipped()["turbo"].with_suffix(".onnx").read_bytes(), "turbo")
    reference = graph.references[0]
    fused = Emulation(graph.content, accumulation).run(reference.inputs)
    np.testing.assert_allclose(fused, reference.fused, atol=LIMITS["float32"].max_abs)


@pytest.mark.parametrize("name", shipped())
def test_shipped_graphs(name: str) -> None:
    """Farther from float32 than ONNX Runtime's arithmetic, and farthest with sums in float16, but within the limits."""
    graph = from_content(shipped_graph(shipped()[name]).read_bytes(), name)
    kept = [reference for reference in graph.references if reference.shape[1:] == (64, 96)]
    parts: list[float] = []
    found = {
        accumulation: in_half_precision(graph.content, accumulation, kept, parts.append)
        for accumulation in ACCUMULATIONS
    }
    assert all(parity.within for parity in found.values())
    assert parts == [pytest.approx(part) for part in (2 / 7, 1, 2 / 7, 1)]
    runtime = next(parity for parity in graph.parity if parity.engine == "ONNX Runtime")
    assert found["float16"].percentile > found["float32"].percentile > 2 * runtime.percentile


def _images(pairs: int, size: int) -> Reference:
    images = np.zeros((pairs, size, size), np.uint8)
    return Reference(images, images, images[:, None].astype(np.float32), Interface(0, interval=True))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (1, [(1, 64, 64), (5, 64, 64), (1, 256, 256)]),
        (MOST_WORK // (6 * 64 * 64), [(1, 64, 64), (5, 64, 64)]),
        (MOST_WORK, [(1, 64, 64)]),
    ],
)
def test_wide_networks_get_fewer_images(weights: int, expected: list[tuple[int, int, int]]) -> None:
    given = [_images(1, 256), _images(5, 64), _images(1, 64)]
    assert [reference.shape for reference in _affordable(weights, given)] == expected
    assert [reference.shape for reference in _affordable(MOST_WORK, [_images(5, 64)])] == [(1, 64, 64)]
