"""Contracts: what they find in our own code, and real breaks that they catch."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from weighbridge.compat.check import Options, check
from weighbridge.compat.locked_environments import (
    CONTROL,
    bounds_of,
    locked_environments,
    name_of,
    without_upper_bound,
)
from weighbridge.compat.resolution import Resolver, pins
from weighbridge.core import contract_runner
from weighbridge.core.paths import PACKAGE
from weighbridge.core.plugins import names
from weighbridge.core.settings import Settings


def test_what_is_needed_is_found_and_what_we_can_do_without_is_not() -> None:
    source = """
import os, alpha.sub
from typing import TYPE_CHECKING
from beta import thing
from weighbridge.core.errors import BadInput
from . import sibling
if TYPE_CHECKING:
    from gamma import Hint
try:
    import optional
except ImportError:
    optional = None
def late() -> None:
    from delta import later
"""
    assert set(contract_runner.used(source)) == {
        ("alpha.sub", ""),
        ("beta", "thing"),
        ("delta", "later"),
    }


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "uses.py").write_text(
        "from json import loads\nimport not_there\nfrom pytest import nothing_such\n"
    )
    with pytest.raises(
        ImportError, match=r"not_there: ModuleNotFoundError.*; pytest.nothing_such: ModuleNotFound"
    ):
        contract_runner.imports(str(tmp_path / "uses.py"))


@pytest.mark.parametrize(
    ("requirement", "name", "bounds", "free"),
    [
        ("fastapi<0.151", "fastapi", "<0.151", "fastapi>=0.150"),
        ("bentoml==1.4.39", "bentoml", "==1.4.39", "bentoml>=0.150"),
        ("Boto3_stubs[s3]>=1.40,<2", "boto3-stubs", ">=1.40,<2", "Boto3_stubs[s3]>=0.150"),
        ("uv", "uv", "", "uv>=0.150"),
        ("a>1 ; python_version < '3.12'", "a", ">1", "a>=0.150 ; python_version < '3.12'"),
    ],
)
def test_a_requirement_without_its_upper_bound_is_not_older_than_the_lock(
    requirement: str, name: str, bounds: str, free: str
) -> None:
    assert (name_of(requirement), bounds_of(requirement)) == (name, bounds)
    assert without_upper_bound(requirement, "0.150+cpu") == free


def test_every_locked_environment_is_checked_and_says_which_contracts_hold_in_it() -> None:
    found = {environment.name: environment for environment in locked_environments()}
    for root in ("serving", "tasks"):
        assert {path.stem for path in (PACKAGE / root).rglob("*.in")} <= set(found)
    for environment in found.values():
        missing = set(environment.direct) - set(pins(environment.lock.read_text())) - {"torch"}
        assert not missing, environment.name
        for one in environment.contracts:
            module, _, function = one.call.partition(":")
            source = (
                PACKAGE / f"{module.removeprefix('weighbridge.').replace('.', '/')}.py"
            ).read_text()
            assert re.search(rf"^def {function}\(", source, re.MULTILINE), one.call
    assert {environment.serves for environment in found.values()} - {None} <= set(names("engine"))


def test_pytorch_stays_as_it_is_locked_unless_asked_otherwise() -> None:
    (control,) = locked_environments([CONTROL])
    constrained, free = Resolver(control), Resolver(control, with_torch=True)
    assert "torch<2.14,>=2.13" in constrained._lifted()
    assert [
        pin.partition("+")[0] for pin in constrained._pinned() if pin.startswith("torch==")
    ] == ["torch==2.13.0"]
    assert free._pinned() == []


FOR_A_SCHEDULE = {"prefect", "fastapi", "sqlalchemy", "filelock", "psutil"}
"""Of all that the control plane asks for: the rest are gigabytes."""


@pytest.mark.slow
def test_fastapi_and_sqlalchemy_that_break_prefect_are_caught_and_told_apart() -> None:
    """A real environment of Prefect, in which two bounds of pyproject.toml are lifted."""
    (control,) = locked_environments([CONTROL])
    requirements = tuple(one for one in control.requirements if name_of(one) in FOR_A_SCHEDULE)
    planned = tuple(
        one
        for one in control.contracts
        if one.call == "weighbridge.flows.upgrade_contracts:a_schedule_is_planned"
    )
    options = Options(only=("fastapi", "sqlalchemy"))
    environment = replace(control, requirements=requirements, contracts=planned)
    report = check([environment], options, Settings().cache)
    blamed = {name: found for _, found in report.breaks for name in found.packages}
    assert set(blamed) == {"fastapi", "sqlalchemy"}, report.markdown()
    assert "Body() got an unexpected keyword argument 'min_items'" in blamed["fastapi"].why
    assert "Can't evaluate bulk DML statement" in blamed["sqlalchemy"].why
    assert {found.contract for found in blamed.values()} == {"a schedule is planned"}
    assert report.markdown().startswith("# Newest releases: fastapi 0.")
