"""When a process that hangs is started again, and when it is left alone."""

import itertools

from weighbridge.core.hang_watch import FIRST_PAUSE, LONGEST_PAUSE, LOOK_SECONDS, LOOKS, HangWatch

START = 1000.0


def restarts(watch: HangWatch, seconds: float, *, since: float = START, begin: float = START):
    """When a process that answers nobody is started again; each restart is a new process."""
    times, now = [], begin
    while now < begin + seconds:
        now += LOOK_SECONDS
        if watch.look(False, since, now):
            times.append(now)
            since = now
    return times


def test_a_process_that_stops_answering_is_restarted_after_some_looks_in_a_row() -> None:
    watch = HangWatch(grace=600)
    assert not watch.look(True, START, START + 5)
    [at] = restarts(watch, LOOKS * LOOK_SECONDS, begin=START + 5)
    assert at == START + 5 + LOOKS * LOOK_SECONDS


def test_one_answer_in_between_begins_the_count_anew() -> None:
    watch = HangWatch(grace=0)
    for number in range(10 * LOOKS):
        assert not watch.look(number % LOOKS == 0, START, START + number)


def test_a_process_that_still_starts_has_its_grace_also_after_a_restart() -> None:
    watch = HangWatch(grace=600)
    first, second = restarts(watch, 1400)
    assert first >= START + 600
    assert second >= first + 600


def test_what_does_not_run_is_nobody_to_restart() -> None:
    assert restarts(HangWatch(grace=0), 3600, since=0) == []


def test_each_restart_in_a_row_waits_twice_as_long_for_the_next() -> None:
    times = restarts(HangWatch(grace=0), 24 * 3600)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses[0] >= 2 * FIRST_PAUSE
    assert all(
        later >= min(2 * earlier, LONGEST_PAUSE) for earlier, later in itertools.pairwise(pauses)
    )
    assert max(pauses) <= LONGEST_PAUSE + LOOK_SECONDS


def test_a_restart_long_ago_no_longer_holds_up_the_next() -> None:
    watch = HangWatch(grace=0)
    restarts(watch, 4 * 3600)
    later = START + 10 * 3600
    watch.look(True, START, later)
    [at, *_] = restarts(watch, 600, begin=later)
    assert at == later + LOOKS * LOOK_SECONDS
