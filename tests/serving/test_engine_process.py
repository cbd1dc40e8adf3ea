"""The runner: ready when a token came, dead engines told at once with their log, nothing left
behind.
"""

import json
import time
from pathlib import Path

import psutil
import pytest

from tests.stand_ins import engine
from tests.stand_ins.engine import StandInArgs
from tests.stand_ins.openai import serve as somebody_else
from weighbridge.core import plugins, processes
from weighbridge.core.errors import Unavailable
from weighbridge.core.settings import Settings
from weighbridge.serving import engine_process
from weighbridge.serving.engine_process import serve
from weighbridge.serving.openai_client import Client


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.gguf").write_text(json.dumps({"ping": "pong"}))
    return folder


def test_it_serves_within_the_block_and_not_after(model: Path, tmp_path: Path) -> None:
    with serve(model, StandInArgs(load_seconds=0.3), Settings().cache, tmp_path / "log") as running:
        assert Client(running.url).ask("ping").text == "pong"
        assert running.load_seconds >= 0.3
        group = running.process.pid
    assert not psutil.pid_exists(group)


def test_it_stops_when_the_block_fails(model: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        serve(model, StandInArgs(), Settings().cache, tmp_path / "log") as running,
    ):
        raise ZeroDivisionError
    assert not psutil.pid_exists(running.process.pid)


def test_an_engine_that_dies_while_loading_is_told_at_once_with_its_log(
    model: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    args = StandInArgs(die_loading="not enough memory for 80 layers")
    with (
        pytest.raises(Unavailable, match="not enough memory for 80 layers"),
        serve(model, args, Settings().cache, tmp_path / "log"),
    ):
        pass
    assert time.monotonic() - started < 10


def test_an_engine_that_is_not_ready_in_time_is_stopped(model: Path, tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    args = StandInArgs(load_seconds=30, start_timeout=0.5)
    with (
        pytest.raises(Unavailable, match="not ready within"),
        serve(model, args, Settings().cache, tmp_path / "log"),
    ):
        pass
    assert {child.pid for child in psutil.Process().children()} == before


def test_a_port_that_somebody_took_is_left_to_him(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with somebody_else() as other:
        taken = other.server_address[1]
        ports = iter([taken, processes.free_port()])
        monkeypatch.setattr(engine_process, "free_port", lambda host: next(ports))
        with serve(model, StandInArgs(), Settings().cache, tmp_path / "log") as running:
            assert running.url != other.url
            assert Client(running.url).ask("ping").text == "pong"
        assert not other.seen


def test_it_does_not_start_among_our_own_packages(model: Path, tmp_path: Path) -> None:
    with serve(model, StandInArgs(), Settings().cache, tmp_path / "log") as running:
        folder = Path(psutil.Process(running.process.pid).cwd())
        assert list(folder.iterdir()) == []
    assert not folder.exists()
