"""Fixtures of all benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled models are not taken from the user's cache, nor left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMFNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
