"""A search ends with whatever is used up first, seconds or starts."""

from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.visits import Failure, Visit


def visits(*seconds: float) -> list[Visit]:
    return [Visit(setting={}, start_seconds=one, repeats=[[1.0]]) for one in seconds]


def test_the_part_that_is_used_is_that_of_what_is_used_more() -> None:
    assert Budget(seconds=10, trials=10).used(visits(4, 2)) == 0.6
    assert Budget(seconds=100, trials=10).used(visits(4, 2)) == 0.2
    assert Budget(trials=4).used(visits(1)) == 0.25


def test_a_visit_that_would_outlast_the_seconds_is_not_begun() -> None:
    assert Budget(seconds=9).allows(visits(3, 3))
    assert not Budget(seconds=8).allows(visits(3, 3))


def test_failures_say_nothing_of_how_long_a_visit_takes() -> None:
    failed = Visit(setting={}, start_seconds=60, failure=Failure(phase="start", why="hung"))
    assert Budget(seconds=64).allows([failed, *visits(2)])


def test_starts_are_counted_whether_they_worked_or_not() -> None:
    failed = Visit(setting={}, start_seconds=1, failure=Failure(phase="start", why="died"))
    assert Budget(trials=3).allows([failed, *visits(1)])
    assert not Budget(trials=2).allows([failed, *visits(1)])
