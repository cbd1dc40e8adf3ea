"""What a plan says of the data: which margin the test rows can show, and what the limits take."""

from pathlib import Path
from typing import Any

import pytest

from tests.flows.chain import recipe, write_data
from tests.tasks.made import load, measured
from weighbridge.configs.recipe import Recipe
from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace
from weighbridge.flows.evidence_forecast import lines, of_speed
from weighbridge.flows.plan import plan
from weighbridge.tasks import rows_at_hand
from weighbridge.tasks.measurement import Repeat
from weighbridge.tasks.repeat import Repeated
from weighbridge.tasks.weigh import Weighed

DATA = "sha256:" + "d" * 64


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
    workspace.stages.run("weigh", 1, Weighed, {"data": DATA}, lambda: weighed)


def test_before_a_weighing_a_tenth_of_the_answers_is_taken_to_differ(workspace: Workspace) -> None:
    shown, more = lines(150, asked(), DATA, workspace)
    assert "150 test rows show that exact_match is not worse by 0.072, in 80 % of cases" in shown
    assert "one of two models alone is right in 10 % of rows, as is usual" in shown
    assert shown.endswith("; that one is better, as often where it is by 0.069")
    assert more == (
        "select.margin 0.02 takes 1,963 test rows; select.max_loss 0.05 takes 314 test rows"
    )


def test_after_a_weighing_the_answers_differ_as_they_did_then(workspace: Workspace) -> None:
    weigh(workspace, 190, 186)
    shown, more = lines(150, asked(), DATA, workspace)
    assert "right in 2 % of rows, as in the last weighing" in shown
    assert shown.endswith("; that one is better they show in fewer cases, however large the gain")
    assert more == "select.margin 0.02 takes 393 test rows"


def test_a_limit_counts_and_enough_rows_are_not_spoken_of(workspace: Workspace) -> None:
    assert "100 test rows" in lines(5_000, asked(evaluate__limit=100), DATA, workspace)[0]
    assert len(lines(5_000, asked(), DATA, workspace)) == 1


def test_nothing_is_said_of_graded_answers_before_a_weighing(workspace: Workspace) -> None:
    graded = asked(
        evaluate__metrics=[{"kind": "rouge_l"}], select__metric="rouge_l", evaluate__min_gain=0.0
    )
    assert lines(150, graded, DATA, workspace) == []


def test_what_the_repeats_can_show_of_speeds(workspace: Workspace) -> None:
    repeats = asked(weigh__repeats=5)
    (usual,) = of_speed(repeats, DATA, workspace)
    assert "20 repeats show that one is 5% faster" in usual
    assert "in 80 % of cases where it is 13% faster" in usual
    assert "spreads by 9.9%, as is usual" in usual
    assert of_speed(asked(), DATA, workspace) == [], "no repeats"
    assert of_speed(asked(weigh__repeats=5, select__objective="size"), DATA, workspace) == []
    runs = {"steady": (1.0, 1.01, 0.99, 1.005), "other": (1.01, 0.99, 1.0, 1.005)}
    seen = Repeated(
        measurements=[
            made.model_copy(
                update={
                    "repeats": [
                        Repeat(block=number, load=load(500 * share))
                        for number, share in enumerate(shares)
                    ]
                }
            )
            for made, shares in ((measured(name), shares) for name, shares in runs.items())
        ],
        champion=None,
    )
    workspace.stages.run("repeat", 1, Repeated, {"data": DATA}, lambda: seen)
    (line,) = of_speed(repeats, DATA, workspace)
    assert "spreads by 1.4%, as in the last repeats" in line
    assert "where it is 6% faster" in line


def sources(folder: Path) -> dict[str, str]:
    """Where a model and six test rows are, on this machine."""
    here = f"file://{write_data(folder)}"
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return {"download__model": here, "download__data__source": here}


def test_a_plan_refuses_limits_that_the_rows_of_a_file_here_cannot_show(
    tmp_path: Path, workspace: Workspace
) -> None:
    here = sources(tmp_path / "data")
    with pytest.raises(BadInput, match=r"6 test rows .* select.max_loss 0.05 takes 73 at least"):
        plan(asked(**here), workspace)
    in_doubt = plan(asked(**here, select__on_doubt="accept"), workspace)
    assert in_doubt.stages[0].action == "run"
    with pytest.raises(BadInput, match=r"3 test rows .* select.max_loss 0.05 takes 73 at least"):
        plan(asked(**here, download__data__test=""), workspace)


def test_a_plan_tells_rows_that_the_run_would_refuse(tmp_path: Path, workspace: Workspace) -> None:
    here = sources(tmp_path / "data")
    same = asked(**here, download__data__test="train.jsonl", select__on_doubt="accept")
    with pytest.raises(BadInput, match=r"rows of test are in train as well, the first as row 1"):
        plan(same, workspace)


def test_a_plan_says_which_rows_it_has_not_read_and_counts_them(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_at_hand, "READ_BYTES", 10)
    here = sources(tmp_path / "data")
    with pytest.raises(BadInput, match=r"6 test rows .* select.max_loss 0.05 takes 73 at least"):
        plan(asked(**here), workspace)
    cut_off = plan(asked(**here, download__data__test=""), workspace)
    shown, *_, unread = cut_off.evidence
    assert "test rows show that" in shown, "how many rows test will have is only about known"
    assert unread.startswith("rows are checked when the data are prepared: they are ")
