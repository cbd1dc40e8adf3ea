"""Rows that prove: as many as a limit takes, and counted how often they did."""

import re

import pytest

from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.data import Row
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.metrics.intervals import mean_score
from weighbridge.tasks.metrics.shipped import RougeLArgs
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.proving_rows import check_rows, count_use, worn
from weighbridge.tasks.statistics.paired import not_worse


def rows(count: int, cluster: int = 0) -> list[Row]:
    return [
        Row(
            prompt=f"{number}?",
            completion="yes",
            cluster=f"document {number // cluster}" if cluster else "",
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("limit", [0.02, 0.05])
def test_the_rows_that_a_loss_takes_are_those_with_which_equal_answers_show_it(
    limit: float,
) -> None:
    with pytest.raises(BadInput) as stop:
        check_rows(rows(30), SelectArgs(max_loss=limit), EvaluateArgs())
    found = re.search(r"takes ([\d,]+) at least", str(stop.value))
    assert found
    fewest = int(found[1])
    check_rows(rows(fewest), SelectArgs(max_loss=limit), EvaluateArgs())
    for count, verdict in ((fewest, "shown"), (fewest - 1, "undecided")):
        same = mean_score([1.0] * count).model_copy(
            update={"ids": [str(number) for number in range(count)]}
        )
        assert not_worse(same, same, limit).verdict == verdict


def test_the_rows_that_a_floor_takes_are_those_with_which_right_answers_show_it() -> None:
    args = SelectArgs(max_loss=None, floor=0.95)
    with pytest.raises(BadInput, match=r"30 test rows .* select.floor 0.95 takes 73 at least"):
        check_rows(rows(30), args, EvaluateArgs())
    check_rows(rows(73), args, EvaluateArgs())
    assert mean_score([1.0] * 73).low >= 0.95 > mean_score([1.0] * 72).low


def test_a_cluster_counts_once_and_a_limit_leaves_rows_out() -> None:
    with pytest.raises(BadInput, match="60 test rows"):
        check_rows(rows(300, cluster=5), SelectArgs(), EvaluateArgs())
    with pytest.raises(BadInput, match="100 test rows"):
        check_rows(rows(300), SelectArgs(), EvaluateArgs(limit=100))


@pytest.mark.parametrize(
    ("args", "metrics"),
    [
        (SelectArgs(on_doubt="accept"), EvaluateArgs()),
        (SelectArgs(max_loss=None), EvaluateArgs()),
        (SelectArgs(metric="rouge_l"), EvaluateArgs(metrics=[RougeLArgs()])),
    ],
    ids=["doubt is accepted", "no limit", "graded answers"],
)
def test_nothing_is_asked_where_nothing_can_be_told_beforehand(
    args: SelectArgs, metrics: EvaluateArgs
) -> None:
    check_rows(rows(3), args, metrics)


def test_a_decision_counts_once_for_its_rows_whatever_is_killed(workspace: Workspace) -> None:
    assert count_use(rows(3), "one", workspace) == 1
    assert count_use(rows(3), "one", workspace) == 1, "noted again after a kill"
    assert count_use(rows(3), "another", workspace) == 2
    assert count_use(rows(4), "one", workspace) == 1, "other rows"


def test_rows_are_spoken_of_from_their_third_decision_on() -> None:
    assert [bool(worn(uses)) for uses in (1, 2, 3)] == [False, False, True]
    assert "3 decisions" in worn(3)
