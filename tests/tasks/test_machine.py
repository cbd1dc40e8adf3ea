"""The machine: what a container's limits leave of it."""

import os
from pathlib import Path

import pytest

from weighbridge.tasks import machine


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    return tmp_path


def test_without_limits_all_of_it_counts(limits: Path) -> None:
    assert machine.cores() == len(os.sched_getaffinity(0))
    (limits / "cpu.max").write_text("max 100000\n")
    (limits / "memory.max").write_text("max\n")
    assert machine.cores() == len(os.sched_getaffinity(0))
    assert machine.memory() > 1 << 28


def test_a_containers_quota_counts(limits: Path) -> None:
    (limits / "cpu.max").write_text("50000 100000\n")
    (limits / "memory.max").write_text("268435456\n")
    assert machine.cores() == 1
    assert machine.memory() == 268435456


def test_people_are_told_what_it_is() -> None:
    told = machine.describe()
    assert set(told) - {"gpu"} == {"processor", "cores", "memory"}
    assert all(told.values())
