"""Compat with a cache of the test's own."""

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A user's cache with one environment in it."""
    folder = tmp_path / "cache"
    (folder / "environments" / "another-0123").mkdir(parents=True)
    return folder
