"""The arithmetic of networks, by name."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

FloatPrecision: TypeAlias = Literal["float32", "bfloat16", "float16"]
# Of a file or of an engine. Convolutions of an "int8" network multiply in 8 bits; that is in its file, so no other file
# runs so.
Precision: TypeAlias = Literal[FloatPrecision, "int8"]
# What an engine is asked for. "auto" is the fastest that stays within half a gray level of float32 on average, as each
# engine's class says.
PrecisionChoice: TypeAlias = Literal["auto", Precision]

FLOAT_PRECISIONS: tuple[FloatPrecision, ...] = get_args(FloatPrecision)
PRECISION_CHOICES: tuple[PrecisionChoice, ...] = get_args(PrecisionChoice)
