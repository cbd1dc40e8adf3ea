"""Verdicts: good versions are hardly ever turned back, bad ones soon; no data is never a pass."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from weighbridge.rollout.canary import LOOKS_WORSE
from weighbridge.rollout.sequential_test import Comparison, wealth_above
from weighbridge.serving.gateway.models import FinishedRequest

OLD, NEW = "6", "7"
ALPHA = 0.01
STEPS = (0.1, 0.5, 1.0)


def seen(server: str = NEW, **facts: Any) -> FinishedRequest:
    fields = {
        "status": 200,
        "seconds": 0.1,
        "stream": False,
        "truncated": False,
        "at": 0.0,
        **facts,
    }
    return FinishedRequest(server=server, **fields)


def traffic(
    rng: random.Random,
    share: float,
    requests: int,
    *,
    errors: tuple[float, float] = (0.0, 0.0),
    slower: float = 1.0,
) -> Iterator[FinishedRequest]:
    """Random requests: `errors` of the old and of the new version; a quarter are long streams."""
    for _ in range(requests):
        new = rng.random() < share
        stream = rng.random() < 0.25
        seconds = rng.lognormvariate(1.0 if stream else -1.0, 0.7) * (slower if new else 1.0)
        status = 500 if rng.random() < errors[new] else 200
        yield seen(NEW if new else OLD, status=status, seconds=seconds, stream=stream)


def evidence(comparison: Comparison) -> float:
    return max(comparison.errors.evidence, comparison.latency.evidence)


def verdict(comparison: Comparison) -> str:
    """What its evidence comes to by itself."""
    strength = evidence(comparison)
    if strength >= 1 / ALPHA:
        return "fail"
    return "inconclusive" if strength >= LOOKS_WORSE else "pass"


def rollout(
    rng: random.Random,
    requests: int,
    *,
    alpha: float = 0.01,
    is_share_known: bool = True,
    steps: tuple[float, ...] = STEPS,
    **faults: Any,
) -> tuple[int, Comparison]:
    """Every step with so many requests, judged after every five; returns at how many it failed, or
    0.
    """
    comparison = Comparison()
    count = 0
    for share in steps:
        batch: list[FinishedRequest] = []
        for request in traffic(rng, share, requests, **faults):
            batch.append(request)
            if len(batch) == 5:
                comparison.see(batch, OLD, NEW, share if is_share_known else None)
                count, batch = count + 5, []
                if evidence(comparison) >= 1 / alpha:
                    return count, comparison
    return 0, comparison


@pytest.mark.parametrize(
    ("is_share_known", "faults"),
    [
        (True, {}),
        (True, {"errors": (0.05, 0.05)}),
        (True, {"errors": (0.3, 0.3)}),
        (True, {"slower": 2.0}),
        (False, {"errors": (0.05, 0.05)}),
        (False, {"errors": (0.3, 0.3)}),
    ],
)
def test_versions_that_are_no_worse_are_turned_back_less_often_than_alpha(
    is_share_known: bool, faults: dict[str, Any]
) -> None:
    rng = random.Random(20)
    rollouts, alpha = 120, 0.05
    alarms = sum(
        rollout(rng, 150, alpha=alpha, is_share_known=is_share_known, **faults)[0] > 0
        for _ in range(rollouts)
    )
    # Six are allowed; Ville's bound is not tight.
    assert alarms <= 3


@pytest.mark.parametrize(
    ("faults", "share", "within"),
    [
        ({"errors": (0.0, 0.05)}, 0.1, 2000),
        ({"errors": (0.0, 0.05)}, 0.5, 1000),
        ({"errors": (0.05, 0.5)}, 0.1, 600),
        ({"errors": (0.0, 1.0)}, 0.1, 150),
        ({"slower": 5.0}, 0.1, 1000),
        ({"slower": 5.0}, 0.5, 300),
    ],
)
def test_bad_versions_fail_within_this_many_requests(
    faults: dict[str, Any], share: float, within: int
) -> None:
    rng = random.Random(21)
    outcomes = [rollout(rng, within, steps=(share,), **faults) for _ in range(20)]
    assert sum(count > 0 for count, _ in outcomes) >= 18
    assert all(verdict(comparison) == "fail" for count, comparison in outcomes if count)


def test_what_is_wrong_is_said_with_figures() -> None:
    comparison = Comparison()
    comparison.see([seen(OLD, seconds=0.1)] * 50 + [seen(seconds=1.0)] * 30, OLD, NEW, 0.5)
    assert verdict(comparison) == "fail"
    assert comparison.harm() == "is more than 2 times slower: median 1 s, 0.1 s before"
    assert comparison.figures()["seconds_new"] == 1.0
    comparison = Comparison()
    comparison.see([seen(OLD)] * 50 + [seen(status=500)] * 10, OLD, NEW, 0.1)
    assert comparison.harm() == "fails more often: 10 of 10 requests, 0 of 50 before"


@pytest.mark.parametrize(
    "facts",
    [
        {"aborted": True},
        {"status": 404},
        {"status": 429},
        {"pinned": True, "status": 500},
        {"server": ""},
        {"moved": True},
    ],
)
def test_what_is_no_versions_doing_does_not_count(facts: dict[str, Any]) -> None:
    comparison = Comparison()
    comparison.see([seen(OLD)] * 100 + [seen(**{"server": NEW, **facts})] * 100, OLD, NEW, 0.5)
    assert comparison.figures()["requests_new"] == 0


def test_a_stream_that_the_server_breaks_off_is_an_error() -> None:
    comparison = Comparison()
    comparison.see([seen(OLD)] * 50 + [seen(stream=True, truncated=True)] * 10, OLD, NEW, 0.1)
    assert verdict(comparison) == "fail"


def test_too_few_errors_to_prove_anything_are_no_pass() -> None:
    comparison = Comparison()
    comparison.see([seen(OLD)] * 20 + [seen()] * 15 + [seen(status=500)] * 5, OLD, NEW, 0.5)
    assert verdict(comparison) == "inconclusive"


def test_an_outage_of_both_is_not_the_new_versions_fault() -> None:
    rng = random.Random(3)
    comparison = Comparison()
    comparison.see(list(traffic(rng, 0.5, 400)), OLD, NEW, 0.5)
    comparison.see(list(traffic(rng, 0.5, 400, errors=(0.9, 0.9))), OLD, NEW, 0.5)
    assert verdict(comparison) == "pass"


def test_errors_of_the_old_version_alone_do_not_turn_the_new_one_back() -> None:
    assert verdict(rollout(random.Random(4), 300, errors=(0.3, 0.0))[1]) == "pass"


def test_a_version_that_serves_alone_is_held_against_what_was_usual() -> None:
    rng = random.Random(5)
    for before, now, expected in ((0.0, 0.2, "fail"), (0.2, 0.2, "pass"), (0.2, 0.9, "fail")):
        comparison = Comparison()
        comparison.see(list(traffic(rng, 0.0, 400, errors=(before, 0.0))), OLD, NEW, 0.0)
        comparison.see(list(traffic(rng, 1.0, 200, errors=(0.0, now))), OLD, NEW, 1.0)
        assert verdict(comparison) == expected, (before, now)


def test_a_first_deployment_has_no_more_than_the_tolerated_errors() -> None:
    rng = random.Random(6)
    for errors, expected in ((0.0, "pass"), (0.2, "fail")):
        comparison = Comparison()
        comparison.see(list(traffic(rng, 1.0, 300, errors=(0.0, errors))), None, NEW, 1.0)
        assert verdict(comparison) == expected


def test_long_streams_are_compared_with_streams_alone() -> None:
    comparison = Comparison()
    comparison.see([seen(OLD, seconds=0.1)] * 200, OLD, NEW, 0.5)
    comparison.see(
        [seen(OLD, stream=True, seconds=60)] * 30 + [seen(stream=True, seconds=60)] * 200,
        OLD,
        NEW,
        0.5,
    )
    assert verdict(comparison) == "pass"


def test_a_mean_beyond_its_bound_is_proven_by_enough_values_alone() -> None:
    assert wealth_above([], 0.02, -1).e_value == 1
    assert wealth_above([1.0] * 14 + [0.0] * 2, 0.02, -1).e_value > 100
    assert wealth_above([1.0, -1.0] * 20, 0.02, -1).e_value < 1
    assert wealth_above([0.02] * 50, 0.02, -1).e_value == pytest.approx(1)
