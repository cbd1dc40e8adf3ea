"""Clocks of two machines: what leases bear is not said, and what is more is."""

import logging
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from tests.stand_ins.http_server import Handler, Server
from weighbridge.core.errors import Unavailable
from weighbridge.core.settings import Settings
from weighbridge.registry import clocks


class Clocked(Server):
    """Answers as MLflow's server does, by a clock of its own."""

    ahead = 0.0


class _Handler(Handler):
    server: Clocked

    def do_GET(self) -> None:
        self.answer()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time() + self.server.ahead, usegmt=True)


@pytest.fixture
def server() -> Iterator[Clocked]:
    with Clocked(_Handler) as server:
        yield server


@pytest.fixture
def settings(server: Clocked, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, tracking_uri=f"http://user:word@127.0.0.1:{server.server_port}")


@pytest.mark.parametrize("ahead", [0.0, 50.0, -50.0])
def test_what_leases_bear_is_not_said(server: Clocked, settings: Settings, ahead: float) -> None:
    server.ahead = ahead
    clocks.check(settings)


@pytest.mark.parametrize(
    ("ahead", "said"), [(300.0, "s behind that of"), (-300.0, "s ahead of that of")]
)
def test_what_is_more_than_they_bear_is_said_in_one_line(
    server: Clocked, settings: Settings, caplog: pytest.LogCaptureFixture, ahead: float, said: str
) -> None:
    server.ahead = ahead
    with pytest.raises(Unavailable, match=f"{said}.* 60 s are borne.*set both by NTP") as refused:
        clocks.check(settings)
    assert "word" not in str(refused.value)
    with caplog.at_level(logging.WARNING):
        clocks.warn(settings)
    assert said in caplog.text


def test_a_server_that_does_not_answer_is_somebody_elses_to_tell(tmp_path: Path) -> None:
    clocks.check(Settings(home=tmp_path, tracking_uri="http://127.0.0.1:1"))


def test_without_another_machine_there_is_one_clock(tmp_path: Path) -> None:
    clocks.check(Settings(home=tmp_path))
