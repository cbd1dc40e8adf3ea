"""Fixtures every test area shares: a workspace of its own, the made models once per machine."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.settings import Settings
from core.workspace import Workspace

MACHINE_CACHE = Settings().cache


@pytest.fixture(autouse=True)
def _own_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the state of the person who runs it; environments are shared by all."""
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(MACHINE_CACHE))
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home" / "prefect"))


@pytest.fixture
def workspace() -> Workspace:
    """A fresh installation in the test's own folder."""
    return Workspace(Settings())


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo's made model and data: `base/` and `data/*.jsonl`."""
    from examples.support_tickets import ensure

    return ensure(MACHINE_CACHE)


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A random Llama of a few hundred thousand parameters, with a chat template."""
    from tests.models import tiny_model as make

    return make(MACHINE_CACHE)


@pytest.fixture(autouse=True)
def _quiet_loggers() -> Iterator[None]:
    """A test that changes the level of our loggers does not change it for the next one."""
    logger = logging.getLogger("weighbridge")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
