"""What a plan says of the data: which margin the test rows can show, and what the limits take."""

from pathlib import Path
from typing import Any

from tests.flows.chain import recipe
from tests.tasks.made import measured
from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.flows.evidence_forecast import lines
from weighbridge.tasks.weigh import Weighed

DATA = Artifact(digest="sha256:" + "d" * 64, format="jsonl", path=Path("/nowhere"), size=1)


def asked(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        recipe(
            "file:///model",
            "file:///data",
            deploy__target={"kind": "local", "port": 1},
            **{"select__max_loss": 0.05, **changes},
        )
    )


def weigh(workspace: Workspace, *right: int) -> None:
    """Keep a weighing on DATA of candidates with so many right answers of 200."""
    weighed = Weighed(
        measurements=[measured(f"number {n}", right=count) for n, count in enumerate(right)]
    )
    workspace.stages.run("weigh", 1, Weighed, {"data": DATA.digest}, lambda: weighed)


def test_before_a_weighing_a_tenth_of_the_answers_is_taken_to_differ(workspace: Workspace) -> None:
    shown, more = lines(150, asked(), DATA, workspace)
    assert "150 test rows show that exact_match is not worse by 0.072, in 80 % of cases" in shown
    assert "one of two models alone is right in 10 % of rows, as is usual" in shown
    assert more == (
        "select.margin 0.02 takes 1,963 test rows; select.max_loss 0.05 takes 314 test rows"
    )


def test_after_a_weighing_the_answers_differ_as_they_did_then(workspace: Workspace) -> None:
    weigh(workspace, 190, 186)
    shown, more = lines(150, asked(), DATA, workspace)
    assert "right in 2 % of rows, as in the last weighing" in shown
    assert more == "select.margin 0.02 takes 393 test rows"


def test_a_limit_counts_and_enough_rows_are_not_spoken_of(workspace: Workspace) -> None:
    assert "100 test rows" in lines(5_000, asked(evaluate__limit=100), DATA, workspace)[0]
    assert len(lines(5_000, asked(), DATA, workspace)) == 1


def test_nothing_is_said_of_graded_answers_before_a_weighing(workspace: Workspace) -> None:
    graded = asked(
        evaluate__metrics=[{"kind": "rouge_l"}], select__metric="rouge_l", evaluate__min_gain=0.0
    )
    assert lines(150, graded, DATA, workspace) == []
