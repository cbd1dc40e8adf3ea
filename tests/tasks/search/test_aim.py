"""A search maximizes the figure that decides in the recipe, at the load that decides."""

import math
from typing import Any

import pytest

from tests.stand_ins import engine
from tests.stand_ins.engine import StandInArgs
from tests.tasks.made import load
from weighbridge.core import plugins
from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Candidate, Variant
from weighbridge.tasks.search.aim import Aim
from weighbridge.tasks.search.candidates import GRID, Searched, searched
from weighbridge.tasks.search.visits import read_grid
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.weigh_args import WeighArgs

METRICS = EvaluateArgs.model_validate({"metrics": [{"kind": "exact_match"}]})
LONG = "one two three four five six seven eight " * 8
BUSY, QUICK = {"default": LONG, "first_delay": 0.1}, {"default": "one", "first_delay": 0.02}
"""Settings with many tokens a second, and with the first one early: by far, also where the machine
is busy.
"""


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        ("throughput", 500),
        ("cost", 500),
        ("requests", 40),
        ("request_cost", 40),
        ("goodput", 30),
        ("latency", 20),
        ("memory", 1e-9),
        ("quality", 500),
        ("size", 500),
    ],
)
def test_every_objective_has_a_figure_of_which_more_is_better(objective: Any, value: float) -> None:
    figures = load(500, requests_per_second=40, ttft=0.05).model_copy(update={"goodput": 30})
    aim = Aim.of(SelectArgs(objective=objective))
    assert aim.value(figures, 10**9) == pytest.approx(value)


def test_a_figure_that_a_run_does_not_have_is_none_but_a_missed_limit_is_little() -> None:
    silent = load(0, requests_per_second=0).model_copy(update={"ttft_p95": None})
    assert math.isnan(Aim(figure="1/TTFT p95").value(silent, 0))
    assert math.isnan(Aim(figure="1/memory").value(silent, 10**9))
    late = load(500, requests_per_second=40).model_copy(update={"goodput": 0.0})
    assert Aim(figure="requests/s within the limits").value(late, 0) == 0.4


def test_the_load_that_decides_is_run_else_the_lowest_and_the_highest() -> None:
    assert Aim.of(SelectArgs()).levels([4, 1, 8]) == [1, 8]
    assert Aim.of(SelectArgs()).levels([4]) == [4]
    assert Aim.of(SelectArgs(concurrency=4)).levels([1, 4, 8]) == [4]


def found(aim: Aim, variant: Variant, data: Artifact, workspace: Workspace) -> Searched:
    search = {
        "options": {"stand_in": {name: [BUSY[name], QUICK[name]] for name in BUSY}},
        "unless": [
            {**BUSY, "first_delay": QUICK["first_delay"]},
            {**QUICK, "first_delay": BUSY["first_delay"]},
        ],
        "trials": 2,
        "run_seconds": 0.3,
    }
    args = WeighArgs.model_validate(
        {"engines": [StandInArgs()], "concurrency": [1, 2], "max_tokens": 100, "search": search}
    )
    candidate = Candidate(label="stand_in/whole", variant=variant, engine=StandInArgs())
    return searched([candidate], data, METRICS, args, workspace, [{}], aim)


def test_memory_is_looked_at_while_the_engine_runs(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)
    candidate = Candidate(label="stand_in/whole", variant=variant, engine=StandInArgs())
    args = WeighArgs(engines=[StandInArgs()], concurrency=[1])
    benchmark = CandidateBenchmark(candidate, data, METRICS, args, "", workspace)
    with benchmark.short_runs(Aim(figure="1/memory")) as run:
        (figure,) = run(0.3)
    assert 1e6 < 1 / figure < 1e9


def test_the_objective_decides_which_options_are_found(
    variant: Variant, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)
    busy = StandInArgs.model_validate(BUSY)
    monkeypatch.setattr(engine.StandInEngine, "tunings", lambda self, cores: [busy])
    for aim, best in (
        (Aim.of(SelectArgs()), BUSY),
        (Aim.of(SelectArgs(objective="latency", concurrency=2)), QUICK),
    ):
        outcome = found(aim, variant, data, workspace)
        (candidate,) = outcome.candidates
        assert candidate.engine.model_dump()["first_delay"] == best["first_delay"]
        assert outcome.why.startswith(f"by {aim.figure}, of 2 settings 2 were tried")
        for point in read_grid(outcome.record.path / GRID):
            assert point.figure == aim.figure
            assert point.levels == aim.levels([1, 2])
