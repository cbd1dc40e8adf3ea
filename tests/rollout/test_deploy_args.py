"""deploy: its options."""

import pytest
from pydantic import ValidationError

from weighbridge.rollout.deploy_args import DeployArgs


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
