"""Where a recipe has its stages run."""

import pytest
from pydantic import ValidationError

from tests.configs.test_load import VALID
from weighbridge.configs.load import parse
from weighbridge.configs.run_args import RunArgs
from weighbridge.core.errors import BadInput


def test_without_it_every_stage_runs_here() -> None:
    run = parse(VALID).run
    assert run.pools() == []
    assert run.place("finetune") is None


def test_a_stage_that_is_named_goes_there_and_the_others_to_the_default() -> None:
    run = RunArgs.model_validate(
        {"default": {"pool": "cpu"}, "finetune": {"pool": "gpu"}, "evaluate": "here"}
    )
    assert run.place("evaluate") is None
    pools = {name: place.pool for name in ("finetune", "weigh") if (place := run.place(name))}
    assert pools == {"finetune": "gpu", "weigh": "cpu"}
    assert [place.pool for place in run.pools()] == ["cpu", "gpu"]


def test_repeats_run_where_candidates_are_weighed() -> None:
    run = RunArgs.model_validate({"weigh": {"pool": "cpu"}})
    place = run.place("repeat")
    assert place is not None
    assert place.pool == "cpu"


@pytest.mark.parametrize("stage", ["select", "deploy"])
def test_what_is_of_the_flow_stays_there(stage: str) -> None:
    assert RunArgs.model_validate({"default": {"pool": "cpu"}}).place(stage) is None


def test_a_stage_that_cannot_be_handed_over_is_refused() -> None:
    with pytest.raises(ValidationError, match="deploy"):
        RunArgs.model_validate({"deploy": {"pool": "cpu"}})


def test_a_mistake_is_told_with_its_line_and_no_other_meaning_of_it() -> None:
    with pytest.raises(BadInput, match=r"line \d+, run.finetune.pol: unknown key") as caught:
        parse(VALID + "run:\n  finetune:\n    pol: gpu\n")
    assert "here" not in str(caught.value)


@pytest.mark.parametrize("place", ["gpu", "3", "[gpu]"])
def test_what_is_no_place_is_told_what_a_place_is(place: str) -> None:
    wrong = r"line \d+, run.finetune: must be `here`, or a work pool: {pool: NAME}"
    with pytest.raises(BadInput, match=wrong):
        parse(f"{VALID}run:\n  finetune: {place}\n")
