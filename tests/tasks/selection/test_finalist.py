"""The finalist: who is repeated, who is chosen, and what is said of the others."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.tasks.made import NOISY, OTHERWISE, REFERENCE, STEADY, measured, repeated
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select import stand
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.finalist import MOST_REPEATED, Finalist, choose, to_repeat
from weighbridge.tasks.selection.limits import Limits
from weighbridge.tasks.selection.objective import Objective
from weighbridge.tasks.statistics.repeats import USUAL_SPREAD
from weighbridge.tasks.statistics.single_runs import luck


def chosen_of(
    *contenders: Measurement, champion: Measurement | None = None, **limits: Any
) -> Finalist:
    args = SelectArgs(**limits)
    standings, _ = stand(contenders, REFERENCE, Limits(args))
    finalist = choose(contenders, standings, champion, args)
    assert finalist is not None
    return finalist


def name(measurement: Measurement) -> str:
    return measurement.candidate.variant.label


def names_to_repeat(
    contenders: Sequence[Measurement], champion: Measurement | None = None, **limits: Any
) -> list[str]:
    args = SelectArgs(**limits)
    standings, _ = stand(contenders, REFERENCE, Limits(args))
    return [name(one) for one in to_repeat(contenders, standings, champion, args)]


def with_threads(measurement: Measurement) -> Measurement:
    engine = measurement.candidate.engine.model_copy(update={"threads": 2})
    candidate = measurement.candidate.model_copy(update={"engine": engine})
    return measurement.model_copy(update={"candidate": candidate})


F16 = measured("F16", speed=1935, size=5 << 20)
Q8 = measured("Q8", speed=1633, size=3 << 20)
Q4 = measured("Q4", speed=1631, size=2 << 20)


@pytest.mark.parametrize("single", [400, 1600, 1631, 1933, 1940, 9000])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_single_run_decides_nothing_against_repeats(single: float, order: Sequence[int]) -> None:
    ahead_by_repeats = repeated(Q8, *(1.3 * share for share in OTHERWISE))
    everyone = [repeated(F16, *STEADY), ahead_by_repeats, measured("Q4", speed=single, size=1)]
    finalist = chosen_of(*(everyone[place] for place in order))
    assert name(finalist.measurement) == "Q8"
    assert "Q8 is the fastest by repeats (measured once: 1,633 tokens/s at" in finalist.praise
    assert "from llama_cpp/F16 it is told apart by repeats" in finalist.praise
    assert finalist.reasons["llama_cpp/F16"].startswith("slower: told apart by repeats (faster is")
    assert finalist.reasons["llama_cpp/Q4"].startswith("not repeated")


def test_whatever_single_runs_and_sizes_are_the_finalist_was_repeated_if_anybody_was() -> None:
    draw = random.Random(3)
    for _ in range(50):
        everyone = [
            measured(str(number), speed=draw.uniform(400, 600), size=draw.randrange(1, 99))
            for number in range(5)
        ]
        for number in draw.sample(range(5), draw.randrange(1, 5)):
            shares = [draw.gauss(1, draw.choice([0.0001, 0.1])) for _ in range(5)]
            everyone[number] = repeated(everyone[number], *shares)
        finalist = chosen_of(*everyone)
        assert finalist.measurement.repeats
        assert len(finalist.reasons) == 4
        assert not any("champion" in why or "limits" in why for why in finalist.reasons.values())


def test_single_runs_decide_where_nobody_within_the_limits_was_repeated() -> None:
    assert name(chosen_of(F16, Q8, Q4).measurement) == "F16"
    other_goal = chosen_of(repeated(F16, *STEADY), Q8, Q4, objective="size")
    assert name(other_goal.measurement) == "Q4", "repeats are of speed"


def test_a_tie_takes_repeats_of_both() -> None:
    one, small = measured("one"), measured("small", size=1)
    assert name(chosen_of(one, small).measurement) == "small", "neither was repeated"
    assert name(chosen_of(repeated(one, *STEADY), small).measurement) == "one"
    both = chosen_of(repeated(one, *STEADY), repeated(small, *OTHERWISE))
    assert name(both.measurement) == "small"
    assert both.reasons["llama_cpp/one"].startswith(
        "tied, with no fewer options changed and no smaller: as fast within 1% is shown"
    )
    objective = Objective(SelectArgs())
    assert objective.tied(one, small)
    assert not objective.tied(repeated(one, *STEADY), small)
    assert not objective.tied(one, repeated(small, *STEADY))
    in_doubt = chosen_of(repeated(one, *STEADY), repeated(small, *NOISY))
    assert name(in_doubt.measurement) == "one"


def test_who_is_behind_the_best_is_told_so_where_another_is_tied_with_it() -> None:
    best, small, slow = measured("best"), measured("small", size=1), measured("slow")
    finalist = chosen_of(
        repeated(best, *(1.002 * share for share in OTHERWISE)),
        repeated(small, *OTHERWISE),
        repeated(slow, *(0.8 * share for share in OTHERWISE)),
    )
    assert name(finalist.measurement) == "small"
    assert finalist.reasons["llama_cpp/slow"].startswith(
        "slower than llama_cpp/best, with which the winner is tied: told apart by repeats"
    )


def test_who_was_not_repeated_is_told_that_its_run_was_behind_or_that_others_were_enough() -> None:
    pair = (repeated(measured("a", speed=1000), *STEADY), repeated(measured("b"), *STEADY))
    behind = chosen_of(*pair, measured("far", speed=800)).reasons["llama_cpp/far"]
    assert behind == (
        "not repeated: measured once, it was 20.0% behind llama_cpp/a, more than single runs "
        "differ by chance (17.6%): 800 tokens/s against 1,000 tokens/s"
    )
    near = chosen_of(*pair, measured("near", speed=900)).reasons["llama_cpp/near"]
    assert near == (
        "not repeated, as were 2 others that single runs do not tell from it: measured once, "
        "900 tokens/s against 1,000 tokens/s"
    )


def test_limits_and_champions_are_named_where_they_decided_and_nowhere_else() -> None:
    doubtful = repeated(measured("doubtful", speed=900, right=196), *STEADY)
    finalist = chosen_of(doubtful, repeated(measured("sure"), *STEADY))
    assert name(finalist.measurement) == "sure"
    assert finalist.praise == (
        "llama_cpp/sure (measured once: 500 tokens/s at concurrency 8) is the likeliest of 2 "
        "candidates within the limits to be shown to keep them"
    )
    assert finalist.reasons["llama_cpp/doubtful"].startswith(
        "less likely to be shown to keep the limits: undecided: exact_match may be up to"
    )
    as_fast = measured("doubtful", right=196, size=1)
    assert name(chosen_of(as_fast, measured("sure")).measurement) == "sure"
    champion = repeated(measured("old", speed=500), *OTHERWISE)
    against = chosen_of(
        repeated(measured("a", speed=900), *STEADY),
        repeated(measured("b", speed=400), *STEADY),
        champion=champion,
        margin=0.05,
    )
    assert name(against.measurement) == "a"
    assert against.praise.endswith(
        "of 2 candidates within the limits to be shown to beat the champion"
    )
    assert against.reasons["llama_cpp/b"].startswith(
        "less likely to be shown to beat the champion: "
    )


def test_several_that_are_likelier_are_counted_as_such() -> None:
    finalist = chosen_of(
        measured("a", speed=400), measured("b", speed=500), measured("c", speed=900, right=196)
    )
    assert finalist.praise == (
        "llama_cpp/b is the fastest (500 tokens/s at concurrency 8) of 2 of 3 candidates within "
        "the limits that are likeliest to be shown to keep them"
    )


def test_those_are_repeated_whom_single_runs_do_not_tell_from_the_best() -> None:
    everyone = [
        measured("best", speed=1000),
        measured("edge", speed=1000 * (1 - luck(3)) + 1),
        measured("out", speed=1000 * (1 - luck(3)) - 1, size=1),
    ]
    assert names_to_repeat(everyone) == ["best", "edge"]
    assert names_to_repeat(everyone[::2]) == ["best", "out"], "there is no other to be held against"
    assert names_to_repeat(everyone[::2], measured("old")) == ["best"]
    assert names_to_repeat([F16, Q8, Q4]) == ["F16", "Q8", "Q4"]


def test_who_would_win_a_tie_is_repeated_however_many_are_ahead() -> None:
    everyone = [with_threads(measured(str(place), speed=1000 - place)) for place in range(8)]
    assert names_to_repeat(everyone) == ["0", "1", "2", "3"]
    for simple in (measured("s", speed=900), with_threads(measured("s", speed=900, size=1))):
        assert names_to_repeat([*everyone, simple]) == ["0", "1", "2", "s"]
    far = measured("s", speed=1000 * (1 - luck(9)) - 1, size=1)
    assert names_to_repeat([*everyone, far]) == ["0", "1", "2", "3"]
    assert len(names_to_repeat(everyone)) == MOST_REPEATED


def test_the_less_likely_are_repeated_only_to_have_somebody_to_be_held_against() -> None:
    sure, other = measured("sure"), measured("other", speed=490)
    doubtful = measured("doubtful", speed=900, right=196)
    assert names_to_repeat([doubtful, sure, other]) == ["sure", "other"]
    assert names_to_repeat([doubtful, sure]) == ["sure", "doubtful"]
    assert names_to_repeat([]) == []


def test_who_beats_the_champion_already_is_repeated_beside_those_that_are_faster() -> None:
    better = measured("better", speed=500, right=200)
    everyone = [
        measured("fast", speed=900, right=180),
        better,
        measured("mid", speed=600, right=180),
    ]
    champion = measured("old", right=180)
    assert names_to_repeat(everyone, champion, max_loss=None) == ["better", "fast"]


def test_the_truly_best_is_behind_by_luck_in_one_case_of_twenty() -> None:
    draw = random.Random(1)
    for candidates in (2, 3, 8):
        lost = 0
        for _ in range(2000):
            runs = [draw.lognormvariate(0, USUAL_SPREAD) for _ in range(candidates)]
            lost += runs[0] < max(runs) * (1 - luck(candidates))
        assert 0.03 < lost / 2000 < 0.065
