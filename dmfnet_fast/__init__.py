"""Fusion of medical images with DM-FNet. Not a medical device."""

from dmfnet_fast.errors import (
    DMFNetError,
    DMFNetWarning,
    EngineError,
    MissingExtraError,
    OutOfMemoryError,
    OutputError,
    PictureError,
)
from dmfnet_fast.fuser import Fuser

__version__ = "0.1.0"

__all__ = [
    "DMFNetError",
    "DMFNetWarning",
    "EngineError",
    "Fuser",
    "MissingExtraError",
    "OutOfMemoryError",
    "OutputError",
    "PictureError",
    "__version__",
]
