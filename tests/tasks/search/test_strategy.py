"""What is tried next, and who has won."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from weighbridge.tasks.search.space import Branch, Setting, space_of
from weighbridge.tasks.search.strategy import SPREAD, Strategy
from weighbridge.tasks.search.visits import Failure, Visit

OPTIONS = {"threads": [1, 2, 4], "slots": [8, 4], "flash": ["auto", "off"]}
SPACE = space_of([Branch("a", OPTIONS)])
TWO = space_of([Branch("a", OPTIONS), Branch("b", OPTIONS)])


def visit(setting: Setting, speed: float | None = 100.0) -> Visit:
    if speed is None:
        failure = Failure(phase="start", why="no memory")
        return Visit(setting=dict(setting), start_seconds=1, failure=failure)
    return Visit(setting=dict(setting), start_seconds=1, repeats=[[speed]])


def setting(**other: Any) -> Setting:
    return {"candidate": "a", "threads": 1, "slots": 8, "flash": "auto", **other}


def test_each_candidates_defaults_come_first() -> None:
    strategy = Strategy(TWO, 0)
    seen: list[Visit] = []
    for default in TWO.defaults:
        assert strategy.next(seen, 0.0) == default
        seen.append(visit(TWO.settings[default]))


def test_values_that_nobody_has_seen_come_before_others() -> None:
    space = space_of([Branch("a", {**OPTIONS, "threads": [1, 2, 3, 4, 5, 6]})])
    strategy, seen = Strategy(space, 0), [visit(space.settings[0])]
    while len(seen) < 6:
        seen.append(visit(space.settings[strategy.next(seen, 0.1)]))
    assert {one.setting["threads"] for one in seen} == {1, 2, 3, 4, 5, 6}


def test_a_visit_to_what_is_suspected_to_fail_is_worth_less() -> None:
    strategy = Strategy(SPACE, 0)
    seen = [
        visit(SPACE.settings[0], 100),
        visit(setting(threads=2), 150),
        visit(setting(slots=4), 150),
        visit(setting(flash="off"), 100),
        visit(setting(threads=2, slots=4), 165),
        visit(setting(threads=4, flash="off"), None),
    ]
    standing = strategy.standing(seen)
    trusted = replace(standing, failing=np.zeros_like(standing.failing))
    assert SPACE.settings[strategy._worthwhile(trusted)]["threads"] == 4
    assert SPACE.settings[strategy._worthwhile(standing)]["threads"] == 2


def test_a_few_visits_that_agree_do_not_hide_an_option_while_it_looks_round() -> None:
    strategy = Strategy(SPACE, 0)
    seen = [visit(setting(**{name: value})) for name in OPTIONS for value in OPTIONS[name][:2]]
    unseen = SPACE.number(setting(threads=4))
    looking = strategy.standing(seen, scales=False).deviation[unseen]
    assert looking > 1.5 * strategy.standing(seen).deviation[unseen]


def test_more_rounds_on_one_start_tell_more_but_less_than_more_starts() -> None:
    strategy = Strategy(SPACE, 0)

    def deviation(*visits: Visit) -> float:
        return float(strategy.standing(visits).deviation[0])

    twice = visit(SPACE.settings[0]).model_copy(update={"repeats": [[100.0], [100.0]]})
    once, starts = deviation(visit(SPACE.settings[0])), [visit(SPACE.settings[0])] * 2
    assert deviation(*starts) < deviation(twice) < once


def test_what_fails_is_not_met_again_by_the_value_that_it_failed_of() -> None:
    strategy = Strategy(SPACE, 0)
    seen = [
        visit(SPACE.settings[0]),
        visit(setting(slots=4, flash="off")),
        visit(setting(threads=4), None),
    ]
    for used in (0.1, 0.9):
        assert SPACE.settings[strategy.next(seen, used)]["threads"] != 4


def test_it_looks_round_until_main_effects_are_known_or_its_share_is_used_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Strategy, "_telling", lambda *_: -1)
    monkeypatch.setattr(Strategy, "_worthwhile", lambda *_: -2)
    strategy = Strategy(SPACE, 0)
    # Of three, two and two values: a mean and four differences.
    worked = [visit(SPACE.settings[number]) for number in range(5)]
    failed = [visit(SPACE.settings[11], None)]
    assert strategy.next(worked[:4] + failed, SPREAD - 0.01) == -1
    assert strategy.next(worked[:4] + failed, SPREAD) == -2
    assert strategy.next(worked + failed, 0.1) == -2


def test_among_those_as_good_within_a_percent_the_fewest_overrides_win() -> None:
    strategy = Strategy(SPACE, 0)
    seen = [visit(SPACE.settings[0], 100.0)] * 6 + [visit(setting(flash="off"), 100.2)] * 6
    assert strategy.winner(strategy.standing(seen)) == 0


def test_the_best_lower_bound_wins_and_not_the_largest_figure() -> None:
    strategy = Strategy(SPACE, 0)
    often = [visit(setting(threads=2), speed) for speed in (200, 202, 199, 201, 200, 203, 198, 200)]
    seen = [visit(SPACE.settings[0], 100.0), *often, visit(setting(threads=4), 207.0)]
    standing = strategy.standing(seen)
    once, settled = SPACE.number(setting(threads=4)), SPACE.number(setting(threads=2))
    assert standing.deviation[once] > 2 * standing.deviation[settled]
    assert strategy.winner(standing) == settled


def test_the_best_of_the_defaults_is_a_finalist_however_far_behind() -> None:
    strategy = Strategy(TWO, 0)
    seen = [visit(TWO.settings[TWO.defaults[0]], 10), visit(TWO.settings[TWO.defaults[1]], 20)]
    seen += [visit(setting(threads=threads, slots=4), 1000) for threads in (2, 4)]
    seen += [visit(setting(threads=threads, flash="off"), 1000) for threads in (2, 4)]
    finalists = strategy.finalists(strategy.standing(seen))
    assert len(finalists) == 5
    assert [number for number in finalists if number in TWO.defaults] == [finalists[-1]]
