"""An engine that hangs is started again, and status and ledger say so; a busy one is left alone."""

from collections.abc import Iterator

import pytest

from tests.rollout.rollouts import Machine, machine
from weighbridge.core.hang_watch import LOOKS
from weighbridge.core.workspace import Workspace
from weighbridge.registry.ledger import record_of
from weighbridge.rollout import target_status
from weighbridge.rollout.engine_watch import EngineWatch, last_restart


@pytest.fixture
def shop(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """One that serves version 1."""
    with machine(workspace, monkeypatch) as shop:
        shop.promote("1")
        yield shop


@pytest.fixture
def watch(shop: Machine) -> EngineWatch:
    """One that has seen an answer."""
    watch = EngineWatch()
    watch.look(shop.managed)
    shop.world.version("1").hangs = True
    return watch


def looks(watch: EngineWatch, shop: Machine, count: int = LOOKS) -> bool:
    """Whether version 1 was started again within so many looks."""
    before = shop.world.started["1"]
    for _ in range(count):
        watch.look(shop.managed)
    return shop.world.started["1"] != before


def test_an_engine_that_hangs_is_started_again_and_status_and_ledger_say_so(
    shop: Machine, watch: EngineWatch
) -> None:
    assert not looks(watch, shop, LOOKS - 1)
    assert looks(watch, shop, 1)
    [status] = target_status.status(shop.workspace)
    assert (status.healthy, status.restarts) == (True, 1)
    assert status.restarted == pytest.approx(status.running_since, abs=5)
    shop.reconcile()
    *_, newest = shop.registry.ledger
    record = record_of(entry for entry in shop.registry.ledger if entry.rollout == newest.rollout)
    assert (record.outcome, record.trigger, record.version) == ("restarted", "watch", "1")
    assert "did not answer" in record.detail
    assert shop.world.violations == []


def test_an_engine_that_answers_its_clients_is_busy_and_no_more(
    shop: Machine, watch: EngineWatch
) -> None:
    for _ in range(5 * LOOKS):
        shop.world.answered += 1
        assert not looks(watch, shop, 1)


def test_an_engine_that_was_stopped_to_make_room_is_left_stopped(
    shop: Machine, watch: EngineWatch
) -> None:
    managed = shop.managed
    rollout = managed.begin_rollout(managed.prepare(shop.state.current.release), "test")
    managed.change_state(rollout=rollout.model_copy(update={"swap": True}))
    assert not looks(watch, shop, 5 * LOOKS)


def test_while_a_rollout_goes_on_it_is_started_again_and_the_ledger_told_afterwards(
    shop: Machine, watch: EngineWatch
) -> None:
    with shop.managed.lock():
        assert looks(watch, shop)
        assert shop.managed.outbox.unmirrored() == []
    watch.look(shop.managed)
    assert [entry.event for entry in shop.managed.outbox.unmirrored()] == [
        "begin",
        "restart",
        "end",
    ]


def test_a_disk_that_is_full_holds_up_no_restart(
    shop: Machine, watch: EngineWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _no_room)
        assert looks(watch, shop)
        assert last_restart(shop.managed.records) is None
    watch.look(shop.managed)
    assert shop.managed.outbox.unmirrored()


def _no_room(descriptor: int) -> None:
    raise OSError(28, "No space left on device")
