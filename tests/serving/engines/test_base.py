"""What every engine shares: which lock it runs from."""

from pathlib import Path

import pytest

from tests.stand_ins.engine import StandInArgs, StandInEngine
from weighbridge.core import plugins
from weighbridge.core.errors import Unavailable
from weighbridge.serving.engines.base import lock_of


def test_the_environment_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        StandInEngine, "locks", {"cpu": Path("slow.lock"), "cuda": Path("fast.lock")}
    )
    monkeypatch.setattr(StandInEngine, "device", lambda self, args: "cuda")
    assert lock_of(StandInEngine(), StandInArgs()) == Path("fast.lock")


def test_a_device_the_engine_has_no_environment_for_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StandInEngine, "device", lambda self, args: "tpu")
    with pytest.raises(
        Unavailable, match="choosing the environment of stand_in: it has none for tpu; known: cpu"
    ):
        lock_of(StandInEngine(), StandInArgs())


@pytest.mark.parametrize("name", plugins.BUILT_IN["engine"])
def test_every_lock_of_an_engine_lies_in_the_tree(name: str) -> None:
    locks = plugins.load("engine", name).locks
    assert all(lock.is_file() for lock in locks.values()), locks
