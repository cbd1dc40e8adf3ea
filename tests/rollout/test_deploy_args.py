"""deploy: its options."""

import pytest
from pydantic import ValidationError

from weighbridge.rollout.deploy_args import DeployArgs, RolloutArgs, answers_of_steps


@pytest.mark.parametrize(
    ("args", "wrong"),
    [
        ({"target": {"kind": "local", "port": 0}}, "port"),
        ({"target": {"kind": "lokal"}}, "did you mean 'local'"),
        ({"rollout": {"steps": [50, 10, 100]}}, "must rise"),
        ({"rollout": {"steps": [10, 50]}}, "end with 100"),
        ({"rollout": {"on_inconclusive": "promote"}}, "rollback"),
        ({"rollout": {"error_rate": 0}}, "error_rate"),
    ],
)
def test_options_are_checked(args: dict[str, object], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        DeployArgs.model_validate(args)


def test_memory_is_given_in_units_people_use() -> None:
    args = DeployArgs.model_validate({"rollout": {"memory_reserve": "1 GiB"}})
    assert args.rollout.memory_reserve == 1 << 30
    assert DeployArgs.model_validate(args.model_dump(mode="json")) == args


@pytest.mark.parametrize(("share", "extra"), [(1, 1.0), (10, 0.2), (50, 0.04), (100, 0.02)])
def test_a_step_excludes_so_many_more_errors_that_each_costs_the_same(
    share: int, extra: float
) -> None:
    assert RolloutArgs(max_extra_errors=0.02).most_extra(share) == pytest.approx(extra)


def test_what_a_rollout_takes_is_what_its_last_step_takes() -> None:
    said = answers_of_steps(RolloutArgs())
    assert "until 2 points of extra errors are excluded: 170 without an error, 877 where" in said
    first = answers_of_steps(RolloutArgs(steps=(100,), max_extra_errors=0.2))
    assert "until 20 points of extra errors are excluded: 15 without an error, 34 where" in first
    assert answers_of_steps(RolloutArgs(exclude_harm="never", min_requests=7)).startswith("7 ans")
