"""status: what should serve, what does, and why not."""

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from tests.rollout.rollouts import Machine, machine
from tests.stand_ins.target import Version
from weighbridge.cli.main import cli
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import target_operations


@pytest.fixture
def shop(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(workspace, monkeypatch) as shop:
        yield shop


def weighbridge(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_status_tells_desired_from_actual_version_and_why_they_differ(shop: Machine) -> None:
    shop.promote("1")
    shop.world.versions["2"] = Version(garbage=True)
    shop.promote("2")
    [seen] = json.loads(weighbridge("status", "--json"))["targets"]
    assert (seen["target"], seen["wish"], seen["serving"]["version"]) == ("shop", "2", "1")
    assert seen["desired_version"] == "2"
    assert "its answers" in seen["detail"]
    shown = weighbridge("status")
    assert "the platform is down" in shown
    assert "demo 1" in shown
    assert "its answers" in shown


def test_status_says_that_a_target_is_paused(shop: Machine) -> None:
    shop.promote("1")
    target_operations.command("shop", "pause", shop.workspace)
    assert "paused; go on with: weighbridge resume shop" in weighbridge("status")


def test_services_that_do_not_run_are_stopped(workspace: Workspace) -> None:
    services = json.loads(weighbridge("status", "--json"))["services"]
    assert [service["name"] for service in services] == [
        "gateway",
        "prefect",
        "mlflow",
        "deployer",
        "worker",
    ]
    assert {service["state"] for service in services} == {"STOPPED"}


def test_down_where_nothing_runs_says_so(workspace: Workspace) -> None:
    assert weighbridge("down") == "nothing was running\n"
