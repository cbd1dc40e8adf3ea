"""A gateway of its own for a test, and two versions behind it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.gateway.upstreams import Upstream, upstreams
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.supervisor import Supervisor


@pytest.fixture(autouse=True)
def _any_metrics_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_METRICS_PORT", "0")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "a home's $place"
    yield folder
    Supervisor(folder).shutdown()


@pytest.fixture
def gateway(home: Path) -> Gateway:
    return Gateway(home)


@pytest.fixture
def two() -> Iterator[list[Upstream]]:
    with upstreams("7", "8") as engines:
        yield engines
