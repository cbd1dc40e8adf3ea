"""A recipe may name a record in place of an engine: the search runs on it, and nobody serves it."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.search import made
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, GateFailed
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.replay import ReplayArgs
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Candidate, Variant
from weighbridge.tasks.package import PackageArgs, package
from weighbridge.tasks.search import recorded
from weighbridge.tasks.search.candidates import GRID, SUMMARY
from weighbridge.tasks.search.space import CANDIDATE
from weighbridge.tasks.search.visits import Question, read_grid, write_grid
from weighbridge.tasks.select import require_winner, select
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.weigh import Weighed, weigh
from weighbridge.tasks.weigh_args import WeighArgs

METRICS = EvaluateArgs.model_validate({"metrics": [{"kind": "exact_match"}]})


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.jsonl"
    points = [
        point.model_copy(update={"setting": {CANDIDATE: "Q8_0", **point.setting}})
        for point in made.grid()
    ]
    write_grid(path, points)
    return path


def weighed(engine: Any, variant: Variant, data: Artifact, workspace: Workspace) -> Weighed:
    search = {"options": "auto", "seconds": 15}
    args = WeighArgs.model_validate({"engines": [engine], "search": search})
    return weigh([variant], data, METRICS, args, workspace)


def test_a_search_runs_on_a_record_without_its_seconds_and_says_how_near_it_came(
    grid: Path, variant: Variant, data: Artifact, workspace: Workspace
) -> None:
    began = time.monotonic()
    found = weighed({"kind": "replay", "grid": str(grid)}, variant, data, workspace)
    assert time.monotonic() - began < 10
    assert found.search is not None
    assert 5 <= len(read_grid(found.search.path / GRID)) <= 12
    summary = (found.search.path / SUMMARY).read_text()
    assert "of the best speed of the record, at " in summary
    decision = select(found.measurements, {}, None, SelectArgs())
    with pytest.raises(GateFailed, match="it answers searches from the record"):
        require_winner(decision)


def test_options_that_the_recipe_gives_keep_their_lines(grid: Path) -> None:
    branch = recorded.branch("replay/whole", ReplayArgs(grid=str(grid), threads=2))
    settings = branch.settings()
    assert len(settings) == 12
    assert {setting["threads"] for setting in settings} == {2}
    assert {setting[CANDIDATE] for setting in settings} == {"replay/whole"}
    assert settings[0][recorded.RECORDED] == "Q8_0"
    with pytest.raises(BadInput, match=r'none of its 36 settings has {"thread": 2}'):
        recorded.branch("replay/whole", ReplayArgs(grid=str(grid), thread=2))


def test_seconds_are_waited_as_far_as_asked(grid: Path) -> None:
    args = ReplayArgs(grid=str(grid), pace=0.1)
    setting = recorded.branch("replay/whole", args).settings()[0]
    began = time.monotonic()
    visit = recorded.answer(args, Question(setting, 1, 0))
    assert visit.setting == setting
    assert time.monotonic() - began >= 0.1 * visit.seconds


def test_what_is_recorded_is_never_packaged(
    grid: Path, variant: Variant, workspace: Workspace
) -> None:
    engine = ReplayArgs(grid=str(grid))
    candidate = Candidate(label="replay/whole", variant=variant, engine=engine)
    with pytest.raises(BadInput, match="serving with replay: it serves nothing") as caught:
        package(candidate, "chat", "1", {}, PackageArgs(), workspace)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_not_there_is_refused_in_one_line(
    variant: Variant, data: Artifact, workspace: Workspace
) -> None:
    for grid, wrong in (("", "`grid` is not given"), ("no.jsonl", "there is no file no.jsonl")):
        with pytest.raises(BadInput, match=wrong):
            weighed({"kind": "replay", "grid": grid}, variant, data, workspace)
