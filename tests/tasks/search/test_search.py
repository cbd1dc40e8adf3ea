"""A search finds what a grid holds at a part of its cost, learns from what fails, and goes on after
being killed.
"""

import json
import os
import signal
from pathlib import Path

import numpy as np
import optuna
import pytest

from tests.tasks.search import made
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.replay import Replay
from weighbridge.tasks.search.search import Found, search
from weighbridge.tasks.search.space import Setting
from weighbridge.tasks.search.visits import Failure, GridPoint, Question, Visit

POINTS = made.grid()
SPACE = made.space(POINTS)


def found(points: list[GridPoint] = POINTS, *, trials: int = 14, seed: int = 0) -> Found:
    return search(made.space(points), Replay(points, seed), Budget(trials=trials), seed=seed)


def point(threads: int, speed: float, noise: float = 0.02) -> GridPoint:
    return GridPoint(
        setting={"threads": threads},
        start_seconds=0.5,
        run_seconds=1.0,
        repeats=[[speed]],
        noise=noise,
    )


def test_it_comes_near_the_best_of_a_noisy_grid_at_half_of_its_visits() -> None:
    replay = Replay(POINTS)
    best = replay.truth(made.BEST)
    settings = [found(trials=18, seed=seed).setting for seed in range(5)]
    shares = [np.exp(replay.truth(setting) - best) for setting in settings]
    # The best but one has 0.90, the median 0.62.
    assert np.mean(shares) > 0.92


def test_the_engines_defaults_come_first_and_are_among_the_finalists() -> None:
    result = found()
    assert result.visits[0].setting == SPACE.settings[0]
    assert 0 in result.finalists


def test_seconds_are_kept_to() -> None:
    replay = Replay(POINTS)
    result = search(SPACE, replay, Budget(seconds=0.3 * replay.seconds()))
    spent = sum(visit.seconds for visit in result.visits)
    assert 0.2 * replay.seconds() < spent <= 0.3 * replay.seconds()


def test_what_fails_is_a_record_and_teaches_the_search() -> None:
    result = found(trials=20)
    failures = [visit for visit in result.visits if visit.failure]
    # A quarter of the settings fail: chance alone would have met five of them.
    assert 1 <= len(failures) <= 3
    assert all(not visit.repeats for visit in failures)
    assert "start: no such pair" in result.reasons().values()


def test_where_all_were_tried_the_seconds_go_to_one_that_works() -> None:
    # The engine's defaults fail: fewer work than a model of main effects has parameters.
    shown = {"start_seconds": 0.5, "run_seconds": 1.0, "noise": 0.05}
    points = [
        GridPoint(
            setting={"threads": 1},
            start_seconds=0.5,
            failure=Failure(phase="start", why="no memory"),
        ),
        GridPoint(setting={"threads": 2}, repeats=[[100.0]], **shown),
    ]
    visits = found(points, trials=10).visits
    assert [visit.setting["threads"] for visit in visits if visit.failure] == [1]


def test_each_loser_keeps_its_reason() -> None:
    result = found()
    tried = {json.dumps(dict(visit.setting), sort_keys=True) for visit in result.visits}
    winner = json.dumps(dict(result.setting), sort_keys=True)
    assert set(result.reasons()) == tried - {winner}
    assert all(" the winner, give" in why or "start:" in why for why in result.reasons().values())


def test_finalists_within_the_noise_are_said_to_be() -> None:
    flat = made.grid(noise=0.1, spread=0.0)
    result = found(flat, trials=10)
    assert result.within_noise
    assert "every finalist is within the noise" in result.why
    assert "within the noise" not in found(trials=20).why


def test_defaults_that_are_far_ahead_are_not_within_the_noise() -> None:
    points = [point(threads, speed) for threads, speed in ((1, 100.0), (2, 50.0), (4, 30.0))]
    result = search(made.space(points), Replay(points), Budget(trials=9))
    assert result.setting == {"threads": 1}
    assert not result.within_noise
    assert result.why.endswith("with the engine's defaults")


def test_a_gain_that_may_be_noise_is_said_where_other_finalists_are_far_behind() -> None:
    points = [point(threads, speed) for threads, speed in ((1, 100.0), (2, 102.0), (4, 10.0))]
    result = search(made.space(points), Replay(points), Budget(trials=12))
    assert result.setting == {"threads": 2}
    assert not result.within_noise
    assert "% against the defaults, which is within the noise" in result.why


def test_what_works_at_times_does_not_win_and_says_why() -> None:
    met: list[Setting] = []

    def dies_again(question: Question) -> Visit:
        met.append(question.setting)
        if question.setting == {"threads": 2} and met.count({"threads": 2}) > 1:
            return Visit(
                setting=dict(question.setting),
                start_seconds=0.5,
                failure=Failure(phase="load", why="killed"),
            )
        return Replay(points)(question)

    points = [point(1, 100.0, noise=0.2), point(2, 200.0, noise=0.2)]
    result = search(made.space(points), dies_again, Budget(trials=12))
    assert result.setting == {"threads": 1}
    assert result.reasons() == {'{"threads": 2}': "load: killed"}
    assert result.best_of([0, 1]) == 0


def test_the_winner_is_the_best_of_whatever_holds_it_and_what_will_fail_is_not() -> None:
    result = found(trials=20)
    everything = range(len(SPACE.settings))
    assert result.best_of(everything) == result.winner
    fails = [number for number in everything if POINTS[number].failure]
    works = next(number for number in everything if not POINTS[number].failure)
    assert result.best_of([*fails, works]) == works
    assert result.best_of(fails) in fails


def test_those_that_failed_are_among_those_that_were_tried() -> None:
    result = found(trials=20)
    failed = len({json.dumps(dict(visit.setting)) for visit in result.visits if visit.failure})
    tried = len({json.dumps(dict(visit.setting)) for visit in result.visits})
    assert result.why.startswith(f"of 36 settings {tried} were tried, {failed} failed")


@pytest.mark.parametrize("killed_at", [0, 1, 6, 13])
def test_a_killed_search_goes_on_to_the_same_winner(killed_at: int, tmp_path: Path) -> None:
    replay, budget, whole = Replay(POINTS), Budget(trials=14), found()

    def dies(question: Question) -> Visit:
        if question.number == killed_at:
            raise KeyboardInterrupt
        return replay(question)

    storage = tmp_path / "search.journal"
    with pytest.raises(KeyboardInterrupt):
        search(SPACE, dies, budget, storage=storage)
    again = search(SPACE, replay, budget, storage=storage)
    assert again.visits == whole.visits
    assert again.winner == whole.winner


def test_sigkill_leaves_no_lock_and_no_half_line_behind(tmp_path: Path) -> None:
    storage = tmp_path / "search.journal"
    child = os.fork()
    if child == 0:
        replay = Replay(POINTS)

        def dies(question: Question) -> Visit:
            if question.number == 5:
                with storage.open("a") as stream:
                    stream.write('{"op_code": 4, "worker')
                os.kill(os.getpid(), signal.SIGKILL)
            return replay(question)

        search(SPACE, dies, Budget(trials=14), storage=storage)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    again = search(SPACE, Replay(POINTS), Budget(trials=14), storage=storage)
    assert again.visits == found().visits


def test_the_trials_are_optunas_failed_ones_too(tmp_path: Path) -> None:
    storage = tmp_path / "search.journal"
    search(SPACE, Replay(POINTS), Budget(trials=14), storage=storage, name="demo")
    backend = optuna.storages.journal.JournalFileBackend(str(storage))
    study = optuna.load_study(study_name="demo", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == 14
    assert study.trials[0].params == dict(SPACE.settings[0])
    failed = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.FAIL]
    assert all(trial.value is None for trial in failed)
    assert failed


def test_a_budget_smaller_than_one_start_is_refused() -> None:
    with pytest.raises(BadInput, match=r"its runs take 1\.5 s, and the budget is 1 s"):
        search(SPACE, Replay(POINTS), Budget(seconds=1))


def test_it_is_refused_again_where_the_search_goes_on(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(BadInput, match=r"and the budget is 1 s"):
            search(SPACE, Replay(POINTS), Budget(seconds=1), storage=tmp_path / "s.journal")


def test_a_first_start_that_fails_for_longer_than_the_budget_tells_its_reason() -> None:
    hangs = [
        GridPoint(
            setting={"threads": 1},
            start_seconds=300,
            failure=Failure(phase="start", why="it was not ready within 300 s"),
        )
    ]
    with pytest.raises(Unavailable, match="the first: it was not ready within 300 s"):
        search(made.space(hangs), Replay(hangs), Budget(seconds=60))


def test_where_nothing_works_the_first_reason_is_told() -> None:
    broken = [
        GridPoint(
            setting=point.setting, start_seconds=0.1, failure=Failure(phase="load", why="died")
        )
        for point in POINTS
    ]
    with pytest.raises(Unavailable, match="none of 5 settings works; the first: died"):
        found(broken, trials=5)
