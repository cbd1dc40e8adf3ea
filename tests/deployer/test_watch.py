"""The watch: neither a bad target nor a watchdog that hangs keeps it from the others."""

import os
import time

import pytest

from weighbridge.core import service_addresses
from weighbridge.core.hang_watch import LOOKS
from weighbridge.core.workspace import Workspace
from weighbridge.deployer import watch
from weighbridge.serving.supervised_program import ProgramState
from weighbridge.serving.supervisor import Supervisor


def test_no_error_of_one_target_keeps_the_watch_from_the_others(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def look(name: str, _: Workspace) -> None:
        looked.append(name)
        if name == "demo":
            raise RuntimeError("a bug")

    monkeypatch.setattr(watch, "known_targets", lambda home: ["demo", "edge"])
    monkeypatch.setattr(watch, "open_target", look)
    for _ in range(2):
        watch.Watch(workspace).look()
    assert looked == ["demo", "edge"] * 2


def test_a_watchdog_that_hangs_is_started_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []
    state = ProgramState("watchdog", "RUNNING", 1, time.time() - 3600)
    monkeypatch.setattr(Supervisor, "state", lambda supervisor, name: state)
    monkeypatch.setattr(Supervisor, "kill", lambda supervisor, name: killed.append(name))
    file = service_addresses.watchdog_file(workspace.settings.home)
    file.parent.mkdir(parents=True)
    file.touch()
    watched = watch.Watch(workspace)
    for _ in range(2 * LOOKS):
        watched.look()
    assert killed == []
    os.utime(file, (1, 1))
    for _ in range(LOOKS):
        watched.look()
    assert killed == ["watchdog"]
