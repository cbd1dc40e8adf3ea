"""What a weighing measured as a grid, so that a search can be replayed on it."""

from collections.abc import Sequence
from typing import Final

from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.search.space import CANDIDATE
from weighbridge.tasks.search.visits import Failure, GridPoint

UNANSWERED: Final = "under load not one request was answered"


def weighed_grid(measurements: Sequence[Measurement]) -> list[GridPoint]:
    """Return a point for each candidate: its options, every run, what start and run took, or why
    there is none.

    Where finalists were repeated, speeds are those at the load of the repeats, which other
    candidates ran once; else those of every load.
    """
    repeated = {run.load.concurrency for one in measurements for run in one.repeats}
    return [_point(one, repeated) for one in measurements]


def _point(measured: Measurement, repeated: set[int]) -> GridPoint:
    options = measured.candidate.engine.changed()
    setting = {CANDIDATE: measured.candidate.label, **options}
    once = [load for load in measured.load if not repeated or load.concurrency in repeated]
    rounds = [once, *([run.load] for run in measured.repeats)]
    answered = [levels for levels in rounds if levels and _have_speed(levels)]
    if measured.failure or not answered:
        why = measured.failure or UNANSWERED
        arguments = measured.candidate.engine.model_dump(mode="json", exclude_none=True)
        failure = Failure(phase="weigh", why=why, arguments=arguments)
        return GridPoint(setting=setting, start_seconds=measured.load_seconds, failure=failure)
    return GridPoint(
        setting=setting,
        start_seconds=measured.load_seconds,
        run_seconds=sum(load.seconds for levels in answered for load in levels) / len(answered),
        repeats=[[load.tokens_per_second for load in levels] for levels in answered],
        levels=[load.concurrency for load in answered[0]],
    )


def _have_speed(levels: Sequence[LoadFigures]) -> bool:
    return all(load.tokens_per_second > 0 for load in levels)
