"""A Bento that is built once for all tests of a module."""

from pathlib import Path

import pytest

from tests.serving import bentos
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bento")


@pytest.fixture(autouse=True)
def _bentoml_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(home / "bentoml"))


@pytest.fixture(scope="module")
def shared(home: Path) -> Workspace:
    return Workspace(Settings(home=home / "home"))


@pytest.fixture(scope="module")
def contents(shared: Workspace) -> bento.Contents:
    return bentos.contents(shared)


@pytest.fixture
def built(contents: bento.Contents, shared: Workspace) -> bento.Built:
    return bento.build(contents, shared.settings.cache)
