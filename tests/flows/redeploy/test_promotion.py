"""A promotion in MLflow, and what becomes of it at the address: good versions serve, bad ones are
rolled back, and no request is lost.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.crowd import Crowd
from tests.flows.live import MODEL, SELDOM, Live
from tests.flows.redeploy.conftest import HABITS
from tests.waiting import until
from weighbridge.deployer.promotion import promote

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_services")]


def test_promoted_in_whatever_way_it_serves_and_no_request_is_lost(shop: Live) -> None:
    # A look that was due anyway may come before MLflow's hint; a command is noted before it moves.
    old, new = shop.good, shop.other
    by_itself, asked_for = {"webhook", "reconcile"}, {"promote"}
    ways: list[tuple[str, set[str], Callable[[], Any]]] = [
        (new, by_itself, lambda: shop.alias(new)),
        (old, by_itself, lambda: shop.alias(old, through="database")),
        (
            new,
            asked_for,
            lambda: promote(MODEL, new, shop.workspace).follow(
                shop.workspace, now=True, on_progress=print
            ),
        ),
        (old, by_itself, lambda: shop.alias(old)),
    ]
    begin = time.time()
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        for version, triggers, move in ways:
            began, asked = time.monotonic(), time.time()
            move()
            shop.serves(version)
            until(
                lambda version=version, began=began: crowd.first_answer(version, began),
                10,  # type: ignore[misc]
                lambda version=version: f"version {version} should answer",  # type: ignore[misc]
            )
            rollout = shop.rolled_out(version, asked)
            assert rollout.outcome == "serving"
            assert rollout.trigger in triggers
            assert (rollout.failed, rollout.cut) == (0, 0)
            assert rollout.requests > 50
    assert crowd.problems == []
    assert {one.version for one in crowd.requests if one.kind == "stream"} == {"1", "2"}
    shop.check_invariants()
    # Each move through the server was told to the deployer, and by it to Prefect.
    until(
        lambda: {event["payload"]["version"] for event in shop.events(begin)} == {old, new},
        30,
        lambda: f"Prefect should know of both moves: {shop.events(begin)}",
    )


def test_a_burst_of_promotions_ends_in_the_last_and_that_is_deployed_once(shop: Live) -> None:
    old, new, asked = shop.good, shop.other, time.time()
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        for number in [new, old] * 24 + [new]:
            shop.alias(number)
        shop.serves(new)
        shop.rolled_out(new, asked)
    assert crowd.problems == []

    def outcomes() -> list[str]:
        return [one.outcome for one in shop.registry.history(MODEL) if one.began >= asked]

    # The ledger is told after the fact, and of those that were superseded first.
    until(lambda: "serving" in outcomes(), 30, lambda: f"{outcomes()}", poll=SELDOM)
    assert outcomes().count("serving") == 1
    assert set(outcomes()) <= {"serving", "superseded"}


def test_an_alias_that_is_gone_takes_nothing_away(shop: Live) -> None:
    old = shop.good
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        shop.no_alias()
        until(
            lambda: "no version" in shop.state.reason,
            30,
            lambda: f"it should be said: {shop.state}",
        )
        shop.serves(old)
    assert crowd.problems == []


@dataclass(frozen=True)
class Bad:
    """What is wrong with a version, how that is found, and what part of all requests it may cost at
    most.
    """

    faults: dict[str, Any]
    why: str
    policy: dict[str, Any] = field(default_factory=dict)
    cost: float = 0.0
    in_traffic: bool = True


BAD = {
    "never starts": Bad(
        {"die_loading": "no such tensor: blk.7"}, "no such tensor: blk.7", in_traffic=False
    ),
    "never gets ready": Bad(
        {"never_ready": True}, "no completion", {"start_deadline": 6}, in_traffic=False
    ),
    "garbage": Bad({"garbage": True}, "its answers", in_traffic=False),
    # One in twenty of what the new version answers, which is at most everything; none of the
    # probe's questions.
    "errors": Bad({"error_every": 20}, "fails more often", {"step_seconds": 5}, cost=0.05),
    "slow": Bad({"first_delay": 0.25}, "slower"),
    # What it has under way when it dies: 10 % of the traffic.
    "dies": Bad(
        {"die_seconds": 10.0}, "out of memory: the stand-in dies", {"step_seconds": 15}, cost=0.03
    ),
    # To take memory takes time as well, and that is not what is to be found.
    "eats memory": Bad({"leak": 32}, "of memory", {"step_seconds": 15, "max_latency_ratio": 100}),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_version_is_rolled_back_and_the_old_one_goes_on(shop: Live, how: str) -> None:
    bad, old = BAD[how], shop.good
    number, asked = shop.add(**bad.faults), time.time()
    shop.claim(**bad.policy)
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        shop.alias(number)
        rollout = shop.failed(number, asked)
        began = time.monotonic()
        shop.alias(old)
        until(lambda: len(crowd.since(began)) > 50, 30, lambda: f"version {old} should answer")
        assert {one.version for one in crowd.since(began)} == {old}
    assert bad.why in rollout.detail
    assert rollout.previous == old
    assert bad.in_traffic == any(line.event == "shift" for line in rollout.events)
    # What a version breaks off that dies has its name; what was about to be sent to it may have
    # none.
    assert {one.version for one in crowd.problems} <= ({number, ""} if bad.cost else set()), (
        crowd.summary()
    )
    assert len(crowd.problems) <= bad.cost * len(crowd.requests), crowd.summary()
    shop.serves(old)
    shop.check_invariants()


def test_where_memory_holds_one_version_the_old_one_comes_back_when_the_new_one_fails(
    shop: Live,
) -> None:
    """Nobody answers meanwhile, and that is said with the time to come back at."""
    number, asked, old = shop.add(garbage=True), time.time(), shop.good
    shop.claim(memory_reserve=1 << 50)
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        shop.alias(number)
        rollout = shop.failed(number, asked)
        shop.alias(old)
        shop.serves(old)
    assert [line.event for line in rollout.events if line.event in ("swap", "probe", "back")] == [
        "swap",
        "probe",
        "back",
    ]
    assert 0 < rollout.evidence["restore_seconds"] < 60
    assert {one.problem for one in crowd.problems} == {"HTTP 503"}
    assert [
        one.kind for one in crowd.requests if one.kind == "stream" and one.problem == "truncated"
    ] == []
    shop.check_invariants()
