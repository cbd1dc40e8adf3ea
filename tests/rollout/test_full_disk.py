"""A disk that fills up in the middle of a rollout: it is judged to its end, and where that cannot
be written down, what served before serves.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rollout.faults import watched
from tests.rollout.rollouts import Machine
from tests.stand_ins.target import Version
from weighbridge.core.errors import Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import rollout
from weighbridge.rollout.interrupted_rollouts import recover


class Disk:
    """A disk that can be full: nothing is written then, and what is there can be read."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()

    def fill(self) -> None:
        os_open, path_open = os.open, Path.open

        def opened(path: str, flags: int, *args: int, **options: int) -> int:
            # A lock's file is there, and nothing is written into it.
            _refuse(bool(flags & os.O_TRUNC) and not str(path).endswith("lock"))
            return os_open(path, flags, *args, **options)

        def path_opened(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            _refuse("a" in mode)
            return path_open(path, mode, *args, **options)

        self._patch.setattr(os, "open", opened)
        self._patch.setattr(Path, "open", path_opened)

    def make_room(self) -> None:
        self._patch.undo()


def _refuse(writes: bool) -> None:
    if writes:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.make_room()


@pytest.fixture
def shop(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, disk: Disk) -> Iterator[Machine]:
    """Version 1 serves."""
    with watched(workspace, monkeypatch, questions=4) as shop:
        shop.promote("1")
        yield shop
        assert shop.world.violations == []


def fill_at(share: int, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full from the moment at which the new version gets this share."""
    observe = rollout.Rollout._observe

    def observed(self: rollout.Rollout, step: int) -> None:
        if step == share:
            disk.fill()
        observe(self, step)

    monkeypatch.setattr(rollout.Rollout, "_observe", observed)


@pytest.mark.parametrize("version", [Version(), Version(error_share=0.8)], ids=["good", "bad"])
def test_a_rollout_that_cannot_be_recorded_goes_back_and_is_settled_when_there_is_room(
    shop: Machine, disk: Disk, monkeypatch: pytest.MonkeyPatch, version: Version
) -> None:
    shop.world.versions["2"] = version
    with monkeypatch.context() as patch:
        fill_at(10, disk, patch)
        with pytest.raises(Unavailable, match=r"No space left on device; make room on the disk of"):
            shop.promote("2")
    assert shop.serves() == "1"
    assert shop.world.routes["2"] == (0, True)
    # The next looks find the same disk.
    with pytest.raises(Unavailable, match="No space left"):
        shop.reconcile()
    recover(shop.workspace)
    assert shop.serves() == "1"
    disk.make_room()
    shop.reconcile()
    assert shop.state.rollout is None
    assert shop.registry.outcomes()[:2] == ["serving", "interrupted"]


def test_a_good_version_is_served_once_there_is_room_again(
    shop: Machine, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fill_at(50, disk, patch)
        with pytest.raises(Unavailable):
            shop.promote("2")
    disk.make_room()
    assert shop.reconcile().action == "deployed"
    assert shop.serves() == "2"


def test_a_swap_that_cannot_be_recorded_brings_the_old_version_back(
    shop: Machine, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.registry.peak_memory["2"], shop.world.free = 6 << 30, 5 << 30
    shop.world.may_pause = True
    probed = rollout.Rollout._probe

    def fill(self: rollout.Rollout) -> None:
        disk.fill()
        probed(self)

    monkeypatch.setattr(rollout.Rollout, "_probe", fill)
    with pytest.raises(Unavailable):
        shop.promote("2")
    assert shop.serves() == "1"
    assert set(shop.world.running) == {"1"}
