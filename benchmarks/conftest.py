"""Fixtures for all benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Uses a temporary cache: compiled models neither come from the user's cache nor stay in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMFNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
