"""The error of an export that is asked for wrongly."""

from __future__ import annotations

from dmfnet_fast.errors import DMFNetError


class RequestError(DMFNetError, ValueError):
    """Options that do not fit together, or mean nothing."""
