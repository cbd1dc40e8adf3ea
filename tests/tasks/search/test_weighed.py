"""Every weighing leaves what it measured as a grid, on which a search can be replayed."""

from pathlib import Path

from tests.tasks.made import load, measured
from weighbridge.tasks.measurement import Measurement, Repeat
from weighbridge.tasks.search.replay import replay_of
from weighbridge.tasks.search.visits import read_grid, write_grid
from weighbridge.tasks.search.weighed import weighed_grid


def repeated(one: Measurement, *speeds: float) -> Measurement:
    runs = [Repeat(block=number, load=load(speed, 8)) for number, speed in enumerate(speeds)]
    return one.model_copy(update={"repeats": runs})


def test_each_candidate_is_a_point_with_options_runs_seconds_or_the_failure(tmp_path: Path) -> None:
    tuned = measured("Q8_0", speed=800)
    engine = tuned.candidate.engine.model_copy(update={"threads": 2})
    candidate = tuned.candidate.model_copy(update={"engine": engine})
    tuned = tuned.model_copy(update={"candidate": candidate})
    path = tmp_path / "grid.jsonl"
    write_grid(path, weighed_grid([tuned, measured("Q4_0", failure="it died\nat once")]))
    first, second = read_grid(path)
    assert first.setting == {"candidate": "llama_cpp/Q8_0", "threads": 2}
    assert (first.levels, first.repeats) == ([1, 8], [[400, 800]])
    assert (first.start_seconds, first.run_seconds) == (0.4, 4.0)
    assert second.failure is not None
    assert second.failure.why == "it died\nat once"
    assert second.failure.arguments["kind"] == "llama_cpp"
    assert second.failure.arguments["ubatch_size"] == 512
    space, replay = replay_of(path)
    assert len(space.settings) == 2
    assert replay.seconds() == 0.4 + 4.0 + 0.4


def test_repeats_count_at_their_load_for_everybody() -> None:
    finalist = repeated(measured("Q8_0", speed=800), 790, 810)
    first, second = weighed_grid([finalist, measured("Q4_0", speed=600)])
    assert (first.levels, first.repeats) == ([8], [[800], [790], [810]])
    assert first.run_seconds == 2.0
    assert (second.levels, second.repeats) == ([8], [[600]])


def test_a_load_without_an_answer_is_a_failure_and_no_speed() -> None:
    (point,) = weighed_grid([measured("Q8_0", speed=0)])
    assert not point.repeats
    assert point.failure is not None
    assert "not one request was answered" in point.failure.why
