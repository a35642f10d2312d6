"""Convolutions in 8 bits: quantized after training, by NNCF, with ranges from made-up or given pairs.

Quantized are the 3x3 convolutions of the denoiser's blocks, which follow a GroupNorm and SiLU, or those of a student's.
Unless asked for, the first and the last block are not: at full size their steps show in the image (turbo: 2.8% more
objective with both in 8 bits, 1.6% without; nano, with ranges from phantoms, 32 dB against 38 dB at worst). All else
stays in floating point, for what it costs or because it gains nothing.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from dmfnet_fast.artifacts.interface import Interface
from dmfnet_fast.artifacts.parity import Reference
from dmfnet_fast.errors import ImageError, require
from dmfnet_fast.evaluation.dataset import find_pairs
from dmfnet_fast.images.color import to_luminance8
from dmfnet_fast.images.io import SMALLEST
from dmfnet_fast.images.padding import STRIDE
from dmfnet_fast.phantom import MODALITIES, make_phantom
from export.verify import Gray, Report

EVERY_BLOCK = re.compile(r"denoiser\.(downs|mid|ups)\.\d+\.(conv1|conv2|conv_x|conv_skip)\.weight")
INNER_BLOCKS = re.compile(rf"(?!denoiser\.(downs\.0|ups\.16)\.){EVERY_BLOCK.pattern}")
WHOLE_STUDENT = re.compile(r"(first|last|blocks\.\d+\.[02])\.weight")
PAIRS = 8  # of each modality
SIZE = 128  # of phantoms
LARGEST = 256  # height and width that are taken from the middle of a given image; more takes much memory
# Scans have outliers that spread ranges: with none left out the objective changes by up to 4.6%, with these by 1%.
# Phantoms have none, and leaving out would cut the largest values of scans.
OUTLIERS, OUTLIERS_OF_PHANTOMS = 1e-4, 0.0
FIRST_SEED = 1000  # of phantoms; those that exports are verified with begin at 0


def calibration_phantoms() -> list[tuple[Gray, Gray]]:
    """Luminances (H, W) of made-up heads, MRI and each of the other modalities."""
    pairs = []
    for n in range(PAIRS):
        for k, modality in enumerate(MODALITIES):
            head = make_phantom(FIRST_SEED + n * len(MODALITIES) + k, SIZE)
            pairs.append((head.mri, to_luminance8(head.other(modality), "phantom")))
    return pairs


def _middle(image: Gray) -> Gray:
    """The middle of an image, of the largest size that the network takes, at most LARGEST."""
    height, width = (min(size // STRIDE * STRIDE, LARGEST) for size in image.shape)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def calibration_pairs(folder: Path) -> list[tuple[Gray, Gray]]:
    """Luminances (H, W) of some pairs of each modality in `folder/train`, the layout that training reads.

    Raises:
        ImageError: there are no pairs, or images are unpaired, unreadable, of different sizes or too small.
    """
    pairs, problems = find_pairs(folder, "train")
    if problems:
        raise ImageError(problems[0])
    found = []
    for modality in dict.fromkeys(pair.modality for pair in pairs):
        files = [pair for pair in pairs if pair.modality == modality]
        # Neighboring slices look alike: every so many-th.
        for n in sorted({n * len(files) // PAIRS for n in range(PAIRS)}):
            a, b = files[n].read().grays
            if min(a.shape) < SMALLEST:
                raise ImageError(
                    f"{files[n].a}: is {a.shape[1]}x{a.shape[0]}; the smallest size is {SMALLEST}x{SMALLEST}"
                )
            found.append((_middle(a), _middle(b)))
    return found


@contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF, without its lines and bars on standard output, and without the reports that it sends of its use."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # is read when it is imported
    try:
        with redirect_stdout(io.StringIO()):
            nncf: Any = require("nncf", extra="int8")
            nncf.set_log_level(40)  # errors
            yield nncf
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before


def check_nncf() -> None:
    """Raise a MissingExtraError if NNCF is not installed; names the extra that brings it."""
    with _quiet_nncf():
        """Imported."""


def quantized_weights(config: Mapping[str, Any], every_block: bool) -> re.Pattern[str]:
    """The names of the weights that are put in 8 bits.

    Args:
        config: of the network, as its file has it.
        every_block: take the first and the last too, as is done of a student that has no others.
    """
    if "blocks" in config:  # a student
        # With two blocks both are outer ones: then both are taken.
        inner = "|".join(map(str, range(1, config["blocks"] - 1))) if config["blocks"] > 2 else r"\d+"
        return WHOLE_STUDENT if every_block else re.compile(rf"blocks\.({inner})\.[02]\.weight")
    return EVERY_BLOCK if every_block else INNER_BLOCKS


def quantize(
    proto: Any,
    quantized: re.Pattern[str],
    interface: Interface,
    pairs: list[tuple[Gray, Gray]],
    outliers: float,
    report: Report,
) -> Any:
    """Put convolutions in 8 bits.

    Weights are symmetric, with a scale for each output channel; activations asymmetric, with one for the whole tensor,
    which reaches over the values of every pair.

    Args:
        proto: an `onnx.ModelProto` as `export.onnx.graph.plain_graph` gives it; it stays as it is.
        quantized: names of their weights.
        interface: of the graph.
        pairs: luminances, (H, W) each, that ranges of values are taken from.
        outliers: part of a pair's values, at each end, that its range may leave out.
        report: is told what part is done, 0 to 1.

    Returns:
        An `onnx.ModelProto` with QuantizeLinear and DequantizeLinear before those convolutions.
    """

    def inputs() -> Iterator[dict[str, Any]]:
        for done, (a, b) in enumerate(pairs):
            yield Reference(a[None], b[None], np.empty(0, np.float32), interface).inputs
            report((done + 1) / len(pairs))

    kinds = {"Conv", "ConvTranspose"}
    kept = [node.name for node in proto.graph.node if node.op_type in kinds and not quantized.fullmatch(node.input[1])]
    others = {node.op_type for node in proto.graph.node} - kinds
    with _quiet_nncf() as nncf:
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
        from nncf.quantization.range_estimator import (
            AggregatorType,
            RangeEstimatorParameters,
            StatisticsCollectorParameters,
            StatisticsType,
        )

        return nncf.quantize(
            proto,
            nncf.Dataset(inputs()),
            # SiLU's values begin at -0.28: symmetric activations would waste half of the steps.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(pairs),
            ignored_scope=nncf.IgnoredScope(names=kept, types=sorted(others)),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParameters(
                    StatisticsCollectorParameters(StatisticsType.QUANTILE, AggregatorType.MIN, None, outliers),
                    StatisticsCollectorParameters(StatisticsType.QUANTILE, AggregatorType.MAX, None, outliers),
                ),
                # Weights of 7 bits: CPUs without VNNI add two products in 16 bits, which those of 8 can overflow.
                overflow_fix=OverflowFix.ENABLE,
                disable_bias_correction=True,
            ),
        )
