"""Limits on faults: decided by the interval of the share, and unknown where none was counted."""

import pytest
from pydantic import ValidationError

from tests.tasks.made import REFERENCE, measured, nll
from weighbridge.core.errors import BadInput
from weighbridge.tasks.data import Row
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.intervals import mean_score
from weighbridge.tasks.select import select
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.fault_limits import faults_within
from weighbridge.tasks.selection.limits import Limits, Standing
from weighbridge.tasks.selection.proving_rows import check_rows


def with_empty(validation: int, test: int | None = None, rows: int = 400) -> Measurement:
    def share(many: int) -> dict[str, object]:
        ones = [1.0] * many + [0.0] * (rows - many)
        return {"empty": mean_score(ones, greater_is_better=False)}

    faults = {"validation": share(validation), "test": share(validation if test is None else test)}
    return measured("a").model_copy(update={"faults": faults})


@pytest.mark.parametrize(("empty", "verdict"), [(0, "shown"), (10, "undecided"), (60, "refuted")])
def test_the_end_of_the_interval_decides(empty: int, verdict: str) -> None:
    (evidence,) = faults_within(with_empty(empty), "validation", SelectArgs(max_empty=0.02))
    assert evidence.claim.verdict == verdict
    assert evidence.rule == "max_empty"
    assert "the share of empty answers" in evidence.claim.why


def test_the_test_rows_decide_about_the_finalist() -> None:
    decision = select([with_empty(0, test=60)], REFERENCE, None, SelectArgs(max_empty=0.02))
    assert decision.winner is None
    assert "empty answers 0.15 is above the limit 0.02" in decision.why


def test_what_was_not_counted_is_undecided_with_its_reason() -> None:
    silent = with_empty(0).model_copy(update={"uncounted": {"truncated": "it does not say"}})
    args = SelectArgs(max_truncated=0.02)
    (evidence,) = faults_within(silent, "test", args)
    assert evidence.claim.verdict == "undecided"
    assert evidence.claim.why == "the share of truncated answers is not known: it does not say"
    (older,) = faults_within(measured("a"), "test", args)
    assert "an earlier release" in older.claim.why


def test_no_limit_asks_for_nothing() -> None:
    assert list(faults_within(with_empty(400), "test", SelectArgs())) == []


def test_a_limit_that_the_rows_cannot_show_is_refused_before_anything_is_made() -> None:
    test = [Row(prompt=f"{n}", completion="a") for n in range(100)]
    with pytest.raises(BadInput, match=r"select.max_empty 0.01 takes 381 at least"):
        check_rows(test, SelectArgs(max_empty=0.01, max_loss=0.3), EvaluateArgs())
    with pytest.raises(ValidationError, match="max_malformed 0 cannot be shown"):
        SelectArgs(max_malformed=0)


def test_a_divergence_is_limited_by_the_end_of_its_interval() -> None:
    def standing(value: float, **more: object) -> Standing:
        score = nll(value).model_copy(update={"low": value / 2, "high": value * 2})
        one = measured("a").model_copy(update={"scores": {"kl": score, **REFERENCE}, **more})
        return Limits(SelectArgs(max_kl=0.1)).standing(one, "validation", REFERENCE)

    assert standing(0.01).verdict == "shown"
    assert standing(0.08).verdict == "undecided"
    assert standing(0.3).verdict == "refuted"
    untold = standing(0.01, scores=REFERENCE, uncounted={"kl": "the engine tells none"})
    assert untold.verdict == "undecided"
    assert "its kl is not known: the engine tells none" in untold.why
