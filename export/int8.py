"""Post-training quantization of convolutions to 8 bits with NNCF, calibrated on phantoms or on given pairs.

The quantized layers are the 3x3 convolutions in the denoiser's blocks, which follow a GroupNorm and SiLU, or those in a
student's blocks. The first and the last block are excluded by default, as they work at full resolution, where their
quantization steps show in the image (turbo: the objective rises by 2.8% with both in 8 bits, by 1.6% without; nano,
calibrated on phantoms: 32 dB against 38 dB in the worst case). All other layers stay in floating point, because
quantizing them costs too much quality or gains no speed.
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
from dmfnet_fast.images.padding import SMALLEST, STRIDE
from dmfnet_fast.phantom import MODALITIES, make_phantom
from export.verify import Gray, Report

EVERY_BLOCK = re.compile(r"denoiser\.(downs|mid|ups)\.\d+\.(conv1|conv2|conv_x|conv_skip)\.weight")
INNER_BLOCKS = re.compile(rf"(?!denoiser\.(downs\.0|ups\.16)\.){EVERY_BLOCK.pattern}")
WHOLE_STUDENT = re.compile(r"(first|last|blocks\.\d+\.[02])\.weight")
PAIRS = 8  # calibration pairs of each modality
SIZE = 128  # height and width of the phantoms
LARGEST = 256  # largest height and width cropped from the middle of a given image; more takes much memory
# Fraction of the values outside the range. Scans have outliers that widen the ranges: if none are cut off, the
# objective changes by up to 4.6%, with this fraction by 1%. Phantoms have no outliers, and cutting would clip the
# largest values of scans.
OUTLIERS, OUTLIERS_OF_PHANTOMS = 1e-4, 0.0
FIRST_SEED = 1000  # first seed of the phantoms; the phantoms that verify exports begin at seed 0


def calibration_phantoms() -> list[tuple[Gray, Gray]]:
    """Luminances (H, W) of phantom pairs: MRI with each of the other modalities."""
    pairs = []
    for n in range(PAIRS):
        for k, modality in enumerate(MODALITIES):
            head = make_phantom(FIRST_SEED + n * len(MODALITIES) + k, SIZE)
            pairs.append((head.mri, to_luminance8(head.other(modality), "phantom")))
    return pairs


def _middle(image: Gray) -> Gray:
    """Crop the middle of an image to multiples of STRIDE, at most LARGEST."""
    height, width = (min(size // STRIDE * STRIDE, LARGEST) for size in image.shape)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def calibration_pairs(folder: Path) -> list[tuple[Gray, Gray]]:
    """Luminances (H, W) of up to PAIRS pairs of each modality in `folder/train`, which has the layout of training data.

    Raises:
        ImageError: there are no pairs, or images are unpaired, unreadable, of different sizes or too small.
    """
    pairs, problems = find_pairs(folder, "train")
    if problems:
        raise ImageError(problems[0])
    found = []
    for modality in dict.fromkeys(pair.modality for pair in pairs):
        files = [pair for pair in pairs if pair.modality == modality]
        # Neighboring slices look alike, so the pairs are spread evenly over the files.
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
    """Import NNCF with its output to standard output suppressed and its telemetry disabled."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # read at import; disables telemetry
    try:
        with redirect_stdout(io.StringIO()):
            nncf: Any = require("nncf", extra="int8")
            nncf.set_log_level(40)  # logging.ERROR
            yield nncf
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before


def check_nncf() -> None:
    """Raise a MissingExtraError, which names the extra to install, if NNCF is not installed."""
    with _quiet_nncf():
        """The import is the whole check."""


def quantized_weights(config: Mapping[str, Any], every_block: bool) -> re.Pattern[str]:
    """A pattern for the names of the weights to quantize.

    Args:
        config: configuration of the network, as stored in its file.
        every_block: include the first and the last block.
    """
    if "blocks" in config:  # a student
        # A student of two blocks has no inner ones, so both are quantized.
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
    """Quantize convolutions to 8 bits.

    Weights are quantized symmetrically with a scale for each output channel, activations asymmetrically with one scale
    for the whole tensor. The range of an activation covers the ranges of all pairs.

    Args:
        proto: an `onnx.ModelProto` from `export.onnx.graph.plain_graph`; it is not modified.
        quantized: pattern for the names of the weights to quantize.
        interface: inputs of the graph.
        pairs: calibration pairs, luminances of shape (H, W) each.
        outliers: fraction of a pair's values, at each end, that may lie outside its range.
        report: callback for the progress, 0 to 1.

    Returns:
        An `onnx.ModelProto` with QuantizeLinear and DequantizeLinear before the quantized convolutions.
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
            # SiLU is never below -0.28, so a symmetric range would waste half of the quantization steps.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(pairs),
            ignored_scope=nncf.IgnoredScope(names=kept, types=sorted(others)),
            advanced_parameters=AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParameters(
                    StatisticsCollectorParameters(StatisticsType.QUANTILE, AggregatorType.MIN, None, outliers),
                    StatisticsCollectorParameters(StatisticsType.QUANTILE, AggregatorType.MAX, None, outliers),
                ),
                # 7-bit weights: CPUs without VNNI add two products in 16 bits, which 8-bit weights can overflow.
                overflow_fix=OverflowFix.ENABLE,
                disable_bias_correction=True,
            ),
        )
