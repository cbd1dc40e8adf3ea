"""Runs whose process cannot be looked up: their leases tell."""

import time

from tests.waiting import until
from weighbridge.core.process_identity import identity
from weighbridge.registry import Registry, leases
from weighbridge.registry.leases import LEASE, OWNER, Keeper, is_gone

ELSEWHERE = "other-host.12345678.4026531836 17 1.0"


def test_a_run_of_this_machine_is_as_its_process_is_whatever_its_lease() -> None:
    assert not is_gone({OWNER: identity(), LEASE: "0"})


def test_a_run_of_another_machine_is_gone_when_its_lease_has_run_out() -> None:
    assert not is_gone({OWNER: ELSEWHERE, LEASE: f"{time.time() + 60:.0f}"})
    assert is_gone({OWNER: ELSEWHERE, LEASE: f"{time.time() - 1:.0f}"})


def test_a_run_of_an_older_release_has_no_lease_and_is_left_alone() -> None:
    assert not is_gone({OWNER: "other-host 17 1.0"})
    assert not is_gone({})


def test_a_run_that_another_machine_left_behind_is_marked_as_killed(registry: Registry) -> None:
    run = registry.release("demo", 1, params={}, tags={})
    client = registry.connection.client
    leases.keeper.release(run.run_id)
    client.set_tag(run.run_id, OWNER, ELSEWHERE)
    registry.release("demo", 2, params={}, tags={}).finish()
    assert client.get_run(run.run_id).info.status == "RUNNING", "its lease has not run out"
    client.set_tag(run.run_id, LEASE, "1")
    registry.release("demo", 3, params={}, tags={}).finish()
    assert client.get_run(run.run_id).info.status == "KILLED"


def test_a_lease_is_renewed_until_the_run_ends(registry: Registry) -> None:
    run = registry.release("demo", 1, params={}, tags={})
    client, keeper = registry.connection.client, Keeper(every=0.05)
    leases.keeper.release(run.run_id)
    client.set_tag(run.run_id, LEASE, "1")

    def lease() -> float:
        return float(client.get_run(run.run_id).data.tags[LEASE])

    keeper.hold(run.run_id, leases.of_run(client, run.run_id))
    until(lambda: lease() > time.time())
    keeper.release(run.run_id)
    until(lambda: keeper._thread is None)
    client.set_tag(run.run_id, LEASE, "1")
    time.sleep(0.2)
    assert lease() == 1
