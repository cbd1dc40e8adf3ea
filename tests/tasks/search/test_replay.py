"""A recorded grid answers a search with its own noise, and says what is wrong with its file."""

from pathlib import Path

import numpy as np
import pytest

from tests.tasks.search import made
from weighbridge.core.errors import BadInput
from weighbridge.tasks.search.replay import Replay, replay_of
from weighbridge.tasks.search.visits import (
    Failure,
    GridPoint,
    Question,
    Visit,
    grid_of,
    read_grid,
    write_grid,
)


def test_noise_is_of_the_record_and_the_same_for_the_same_question() -> None:
    points = made.grid(noise=0.1)
    replay = Replay(points, seed=1)
    setting = points[0].setting
    logs = [replay(Question(setting, 1, number)).log_speeds()[0] for number in range(300)]
    assert np.std(logs) == pytest.approx(0.1, rel=0.2)
    assert np.mean(logs) == pytest.approx(replay.truth(setting), abs=0.03)
    again = Replay(points, seed=1)(Question(setting, 1, 7))
    assert again == replay(Question(setting, 1, 7))


def test_a_failure_costs_what_it_cost_and_a_longer_visit_more() -> None:
    points = made.grid()
    replay = Replay(points)
    failed = next(point for point in points if point.failure)
    assert replay(Question(failed.setting, 1, 0)).seconds == 0.5
    assert replay(Question(points[0].setting, 3, 0)).seconds == 3.5


def test_visits_make_a_grid_that_can_be_read_again(tmp_path: Path) -> None:
    visits = [
        Visit(setting={"threads": 1}, start_seconds=1, run_seconds=2, repeats=[[10.0, 20.0]]),
        Visit(setting={"threads": 1}, start_seconds=3, run_seconds=2, repeats=[[12.0, 22.0]]),
        Visit(setting={"threads": 2}, start_seconds=1, failure=Failure(phase="start", why="no")),
    ]
    path = tmp_path / "grid.jsonl"
    write_grid(path, grid_of(visits))
    first, second = read_grid(path)
    assert first == GridPoint(
        setting={"threads": 1}, start_seconds=2, run_seconds=2, repeats=[[10.0, 20.0], [12.0, 22.0]]
    )
    assert second.failure == Failure(phase="start", why="no")
    space, replay = replay_of(path)
    assert len(space.settings) == 2
    assert replay.seconds() == 5


def test_ratios_count_at_every_load_and_not_the_larger_figures_of_the_higher_ones() -> None:
    visit = Visit(setting={}, start_seconds=1, repeats=[[10.0, 1000.0], [100.0, 100.0]])
    assert np.exp(visit.log_speeds()) == pytest.approx([100.0, 100.0])


@pytest.mark.parametrize(
    ("text", "wrong"), [("", "it has no line"), ('{"setting": 3}\n', "line 1: "), (None, "No such")]
)
def test_a_file_that_is_no_grid_is_refused_with_its_line(
    text: str | None, wrong: str, tmp_path: Path
) -> None:
    path = tmp_path / "grid.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match=wrong):
        read_grid(path)
