"""Names of the precisions in which networks compute."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

FloatPrecision: TypeAlias = Literal["float32", "bfloat16", "float16"]
# Precision of a file or of an engine. An "int8" network multiplies in 8 bits in its quantized convolutions. The
# quantization is part of the file, so only files exported as int8 run in it.
Precision: TypeAlias = Literal[FloatPrecision, "int8"]
# Precision requested of an engine. "auto" is the fastest that stays within half a gray level of float32 on average;
# each engine's class documents its choice.
PrecisionChoice: TypeAlias = Literal["auto", Precision]

FLOAT_PRECISIONS: tuple[FloatPrecision, ...] = get_args(FloatPrecision)
PRECISION_CHOICES: tuple[PrecisionChoice, ...] = get_args(PrecisionChoice)
