"""Half-precision arithmetic of GPUs, emulated on a CPU: runs a float16 graph and rounds every result to float16.

ONNX Runtime's CPU kernels compute most of such a graph in float32, and so say little about engines in float16. What an
engine does is not known exactly: TensorRT chooses kernels by their speed. Products may be summed in float32, or in
float16, which GeForce GPUs do at twice the rate, and operations may be fused, which only spares roundings. So both ways
of summing are emulated, without any fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmfnet_fast.artifacts.parity import Parity, Reference, compare_with
from dmfnet_fast.errors import require

Accumulation: TypeAlias = Literal["float32", "float16"]

ACCUMULATIONS: tuple[Accumulation, ...] = ("float32", "float16")
# Products that tensor cores add at once, with the previous sum, before they round: those of 16 input channels.
PRODUCTS_AT_ONCE = 16
# Pixels times weights that an emulation takes on: turbo up to 256x256, in seconds; of base one pair of 64x96, in a
# minute.
MOST_WORK = 2 * 10**11


def _tensor(values: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(np.require(values, requirements=("C", "W"))).float()


def _sum(terms: Iterator[Any]) -> Any:
    """The sum of float32 terms, added one after the other and rounded to float16 after each."""
    total = next(terms).half()
    for term in terms:
        total.copy_(term.add_(total))
    return total


class _Products:
    """Convolutions and matrix products of numpy arrays, with float32 or float16 sums.

    Each takes what the ONNX operator of the same name does; only the attributes that our graphs have are supported.
    """

    def __init__(self, accumulation: Accumulation) -> None:
        self._half_sums = accumulation == "float16"

    def conv(
        self,
        x: NDArray[Any],
        weight: NDArray[Any],
        bias: NDArray[Any] | None = None,
        *,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        group: int | None = None,
    ) -> NDArray[Any]:
        from torch.nn import functional as F

        top, left, *end = pads or (0, 0, 0, 0)
        assert end == [top, left], "padding is symmetric in our graphs"
        step = tuple(strides or (1, 1))
        image, kernel = F.pad(_tensor(x), (left, left, top, top)), _tensor(weight)
        if not self._half_sums or x.dtype != np.float16:
            result = F.conv2d(image, kernel, stride=step, groups=group or 1)
        else:
            rows, columns = (
                (size - extent) // by + 1
                for size, extent, by in zip(image.shape[2:], kernel.shape[2:], step, strict=True)
            )

            def terms() -> Iterator[Any]:
                for i, j in np.ndindex(*kernel.shape[2:]):
                    seen = image[:, :, i : i + rows * step[0] : step[0], j : j + columns * step[1] : step[1]]
                    tap = kernel[:, :, i : i + 1, j : j + 1]
                    if group not in (None, 1):
                        yield F.conv2d(seen, tap, groups=group)
                        continue
                    for some in _slices(kernel.shape[1]):
                        yield F.conv2d(seen[:, some], tap[:, some])

            result = _sum(terms()).float()
        return _finished(result, bias, x)

    def conv_transpose(
        self,
        x: NDArray[Any],
        weight: NDArray[Any],
        bias: NDArray[Any] | None = None,
        *,
        pads: Sequence[int] | None = None,
        strides: Sequence[int],
    ) -> NDArray[Any]:
        from torch.nn import functional as F

        settings: dict[str, Any] = {"stride": tuple(strides), "padding": tuple(pads or (0, 0))[:2]}
        image, kernel = _tensor(x), _tensor(weight)
        if not self._half_sums or x.dtype != np.float16:
            return _finished(F.conv_transpose2d(image, kernel, **settings), bias, x)

        def terms() -> Iterator[Any]:
            for i, j in np.ndindex(*kernel.shape[2:]):
                tap = kernel.new_zeros(kernel.shape)
                tap[:, :, i, j] = kernel[:, :, i, j]
                for some in _slices(len(kernel)):
                    yield F.conv_transpose2d(image[:, some], tap[some], **settings)

        return _finished(_sum(terms()).float(), bias, x)

    def matmul(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        left, right = _tensor(a), _tensor(b)
        if not self._half_sums or a.dtype != np.float16:
            return _rounded(left @ right, a)
        return _rounded(_sum(left[..., some] @ right[..., some, :] for some in _slices(a.shape[-1])), a)


def _slices(channels: int) -> list[slice]:
    return [slice(start, start + PRODUCTS_AT_ONCE) for start in range(0, channels, PRODUCTS_AT_ONCE)]


def _rounded(result: Any, like: NDArray[Any]) -> NDArray[Any]:
    import torch

    kept: NDArray[Any] = result.to(torch.half if like.dtype == np.float16 else torch.float32).numpy()
    return kept


def _finished(result: Any, bias: NDArray[Any] | None, like: NDArray[Any]) -> NDArray[Any]:
    """Add the bias of each channel, and round."""
    return _rounded(result if bias is None else result + _tensor(bias)[:, None, None], like)


def _sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """In float32; onnx's own computes one value at a time."""
    return _rounded(_tensor(x).sigmoid(), x)


def _resize(x: NDArray[Any], *_: Any, mode: str, coordinate_transformation_mode: str) -> NDArray[Any]:
    """Twice as large; onnx's own computes one value at a time."""
    from torch.nn import functional as F

    assert (mode, coordinate_transformation_mode) == ("linear", "align_corners")
    return _rounded(F.interpolate(_tensor(x), scale_factor=2, mode="bilinear", align_corners=True), x)


def _operators(accumulation: Accumulation) -> list[Any]:
    """Operators in place of onnx's own, as classes that its evaluator takes."""
    op_run: Any = require("onnx.reference.op_run", extra="export")
    products = _Products(accumulation)
    functions: dict[str, Callable[..., NDArray[Any]]] = {
        "Conv": products.conv,
        "ConvTranspose": products.conv_transpose,
        "MatMul": products.matmul,
        "Sigmoid": _sigmoid,
        "Resize": _resize,
    }
    taken = {
        "Conv": ("pads", "strides", "group"),
        "ConvTranspose": ("pads", "strides"),
        "Resize": ("mode", "coordinate_transformation_mode"),
    }

    def operator(name: str) -> Any:
        def _run(self: Any, *inputs: Any, **attributes: Any) -> tuple[NDArray[Any]]:
            del self
            return (functions[name](*inputs, **{key: attributes[key] for key in taken.get(name, ())}),)

        return type(name, (op_run.OpRun,), {"op_domain": "", "_run": _run})

    return [operator(name) for name in functions]


class Emulation:
    """A graph that can be run on inputs of any size.

    Args:
        content: a serialized ONNX model without functions.
        accumulation: type of the sums of products.

    Attributes:
        weights: number of values that are stored in the graph.

    Raises:
        MissingExtraError: onnx or torch is not installed.
    """

    def __init__(self, content: bytes, accumulation: Accumulation) -> None:
        onnx: Any = require("onnx", extra="export")
        reference: Any = require("onnx.reference", extra="export")
        require("torch", extra="export")
        model = onnx.ModelProto.FromString(content)
        self._evaluator = reference.ReferenceEvaluator(model, new_ops=_operators(accumulation))
        self.weights = sum(array.size for array in self._evaluator.rt_inits_.values())
        self._last_use = {name: n for n, node in enumerate(self._evaluator.rt_nodes_) for name in node.input}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The output of the graph. Values that are used no more are freed, which the evaluator's own `run` does not."""
        (output,) = self._evaluator.output_names
        values: dict[str, Any] = {"": None, **self._evaluator.rt_inits_}
        values.update((name, inputs[name]) for name in self._evaluator.input_names)
        for n, node in enumerate(self._evaluator.rt_nodes_):
            results = node.run(*(values[name] for name in node.input))
            values.update(zip(node.output, results, strict=False))
            for name in node.input:
                if name and self._last_use[name] == n and name in values:
                    del values[name]
        fused: NDArray[np.float32] = values[output]
        return fused


def _affordable(weights: int, references: Sequence[Reference]) -> list[Reference]:
    """The references with the fewest pixels that MOST_WORK allows, but at least one pair."""
    by_size = sorted(references, key=lambda reference: reference.a.size)
    work, kept = 0, []
    for reference in by_size:
        work += reference.a.size * weights
        if work > MOST_WORK:
            break
        kept.append(reference)
    first = by_size[0]
    return kept or [replace(first, a=first.a[:1], b=first.b[:1], fused=first.fused[:1])]


def in_half_precision(
    content: bytes, accumulation: Accumulation, references: Sequence[Reference], report: Callable[[float], None]
) -> Parity:
    """Run a float16 graph in emulated half precision and compare it with references.

    Args:
        content: a serialized ONNX model without functions.
        accumulation: type of the sums of products.
        references: what to compare with; for wide networks, only the smallest images are run.
        report: callback for the progress, 0 to 1.
    """
    emulation = Emulation(content, accumulation)
    wanted = _affordable(emulation.weights, references)
    fused: list[NDArray[np.float32]] = []
    for reference in wanted:
        fused.append(emulation.run(reference.inputs))
        report(sum(image.size for image in fused) / sum(r.fused.size for r in wanted))
    return compare_with(f"emulated GPU, {accumulation} sums", "float16", fused, wanted)
