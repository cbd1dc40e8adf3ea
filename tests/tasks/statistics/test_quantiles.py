"""Limits of latencies: met, missed, undecided."""

import pytest

from weighbridge.serving.latencies import Latencies
from weighbridge.tasks.statistics.quantiles import limit_verdict, share_interval, turning_limit


@pytest.mark.parametrize(
    ("latencies", "verdict", "needed"),
    [
        (Latencies.of([0.1] * 90), "shown", None),
        (Latencies.of([0.1] * 89), "undecided", 90),
        (Latencies.of([0.1] * 88 + [0.9] * 12), "refuted", None),
        (Latencies.of([0.1] * 88, never=12), "refuted", None),
        # Cut off before the limit: it may have kept it, or not.
        (Latencies.of([0.1] * 90, open=[0.2]), "undecided", 92),
        (Latencies.of([0.1] * 89, open=[0.9]), "undecided", None),
        (Latencies(), "undecided", 90),
    ],
)
def test_a_limit_of_p95_is_decided_by_how_many_went_beyond(
    latencies: Latencies, verdict: str, needed: int | None
) -> None:
    claim = limit_verdict(latencies, 0.5)
    assert claim.verdict == verdict
    if needed is not None:
        assert claim.needed == needed
    assert claim.low <= claim.estimate <= claim.high


def test_a_limit_of_p99_takes_more_requests() -> None:
    assert limit_verdict(Latencies.of([0.1] * 458), 0.5, 0.99).needed == 459
    assert limit_verdict(Latencies.of([0.1] * 459), 0.5, 0.99).verdict == "shown"


def test_a_verdict_says_what_was_seen() -> None:
    claim = limit_verdict(Latencies.of([0.1] * 30, never=1), 0.5)
    assert claim.why == (
        "30 of 31 requests kept TTFT 500 ms: p95 is neither met nor missed with 99% confidence"
    )


def test_the_interval_of_a_share_is_clopper_and_pearsons() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 5.
    assert share_interval(81, 263) == pytest.approx((0.2527, 0.3676), abs=5e-5)
    assert share_interval(0, 0) == (0, 1)


def test_the_limit_at_which_a_verdict_turns_is_one_of_the_latencies() -> None:
    latencies = Latencies.of(number / 100 for number in range(1, 401))
    for met in (True, False):
        turns = turning_limit(latencies, met)
        assert turns is not None
        kept, before = (limit_verdict(latencies, at).verdict for at in (turns, turns - 0.01))
        assert (kept, before) == (("shown", "undecided") if met else ("undecided", "refuted"))
    assert turning_limit(Latencies.of([1.0] * 10, never=90), met=True) is None
