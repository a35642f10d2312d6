"""Fusion of medical images with DM-FNet. Not a medical device."""

from dmfnet_fast.errors import (
    DMFNetError,
    DMFNetWarning,
    EngineError,
    ImageError,
    MissingExtraError,
    OutOfMemoryError,
    OutputError,
)
from dmfnet_fast.fuser import Fuser

__version__ = "0.1.0"

__all__ = [
    "DMFNetError",
    "DMFNetWarning",
    "EngineError",
    "Fuser",
    "ImageError",
    "MissingExtraError",
    "OutOfMemoryError",
    "OutputError",
    "__version__",
]
