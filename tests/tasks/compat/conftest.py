"""Compat against an index of the test's own."""

from pathlib import Path

import pytest

from tests.tasks.compat.index import Index


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """An empty index."""
    (wheels := tmp_path / "wheels").mkdir()
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return Index(tmp_path, wheels)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A user's cache with one environment in it."""
    folder = tmp_path / "cache"
    (folder / "environments" / "another-0123").mkdir(parents=True)
    return folder
