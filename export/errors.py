"""The error for invalid export options."""

from __future__ import annotations

from dmfnet_fast.errors import DMFNetError


class RequestError(DMFNetError, ValueError):
    """Options are invalid or contradict each other."""
