"""status: what should serve, what does, and why not."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.deployer.bench import Bench
from tests.rollout.rollouts import Machine, machine
from tests.stand_ins.target import Version
from tests.waiting import soon
from weighbridge.cli.main import cli
from weighbridge.core import service_addresses
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding
from weighbridge.rollout import target_operations
from weighbridge.services.logs import follow
from weighbridge.services.platform import Platform
from weighbridge.services.service_status import ServiceStatus
from weighbridge.serving.supervisor import Supervisor


@pytest.fixture
def shop(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(workspace, monkeypatch) as shop:
        yield shop


def weighbridge(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == status, done.output
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
        "watchdog",
    ]
    assert {service["state"] for service in services} == {"STOPPED"}


def test_down_where_nothing_runs_says_so(workspace: Workspace) -> None:
    assert weighbridge("down") == "nothing was running\n"


def test_status_ends_with_4_where_a_target_is_down_and_says_how_long_it_runs(shop: Machine) -> None:
    shop.promote("1")
    [seen] = json.loads(weighbridge("status", "--json"))["targets"]
    assert seen["running_since"] == pytest.approx(seen["since"], abs=5)
    shop.world.version("1").hangs = True
    shown = weighbridge("status", status=4)
    assert "down" in shown
    assert "answers" not in shown


def test_status_ends_with_4_where_a_platform_that_was_up_is_down(workspace: Workspace) -> None:
    assert "the platform is down" in weighbridge("status")
    service_addresses.choose(workspace.settings)
    assert "the platform is down" in weighbridge("status", status=4)


def test_a_service_that_runs_and_does_not_answer_is_not_called_running(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = ServiceStatus(
        name="mlflow", state="RUNNING", since=1.0, restarted=time.time() - 61, log=Path("x")
    )
    monkeypatch.setattr(Platform, "services", lambda platform: [hung])
    service_addresses.choose(workspace.settings)
    shown = weighbridge("status", status=4)
    assert "does not answer" in shown
    assert "mlflow: hung 1 min 1 s ago, and was started again" in shown


OWN_ENVIRONMENT = "which has an environment of its own, could not look after it"
NO_CLUSTER = Unavailable("serving in the cluster", "there is no kubeconfig", "set KUBECONFIG")
TOLD = "ago): serving in the cluster: there is no kubeconfig; set KUBECONFIG. It tries again"


@contextmanager
def failing_deployer(home: Path, monkeypatch: pytest.MonkeyPatch, *targets: str) -> Iterator[Bench]:
    """A deployer whose first look at each target ends in an error."""
    bench = Bench(home, *(Binding(target=name, model="demo", deploy={}) for name in targets))
    bench.work.wrong = dict.fromkeys(targets, NO_CLUSTER)
    monkeypatch.setenv("WEIGHBRIDGE_DEPLOYER_PORT", bench.deployer.url.rpartition(":")[2])
    try:
        bench.start()
        assert soon(lambda: all("at" in bench.looked_at(name) for name in targets))
        yield bench
    finally:
        bench.close()


def test_what_keeps_the_deployer_from_a_target_is_told_where_the_target_answers(
    shop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.promote("1")
    with failing_deployer(shop.workspace.settings.home, monkeypatch, "shop") as bench:
        shown = " ".join(weighbridge("status").split())
        assert "shop answers 1" in shown
        assert f"shop: the deployer, {OWN_ENVIRONMENT}" in shown
        assert TOLD in shown
        [seen] = json.loads(weighbridge("status", "--json"))["targets"]
        assert (seen["healthy"], seen["deployer_error"]) == (True, str(NO_CLUSTER))
        assert seen["deployer_error_at"] == pytest.approx(time.time(), abs=30)
        bench.wake()
        assert soon(lambda: bench.looked_at("shop")["action"] == "nothing")
        assert "the deployer" not in weighbridge("status")
        [seen] = json.loads(weighbridge("status", "--json"))["targets"]
        assert (seen["deployer_error"], seen["deployer_error_at"]) == ("", 0.0)


def test_a_target_that_the_deployer_alone_knows_is_down_where_it_cannot_open_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing_deployer(workspace.settings.home, monkeypatch, "cluster"):
        shown = weighbridge("status", status=4)
        assert "nothing serves" not in shown
        assert TOLD in shown
        [seen] = json.loads(weighbridge("status", "--json", status=4))["targets"]
        assert (seen["target"], seen["healthy"]) == ("cluster", False)


def test_a_deployer_that_cannot_work_with_mlflow_says_why(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing_deployer(workspace.settings.home, monkeypatch) as bench:
        assert "looks after no target" not in weighbridge("status")
        bench.mlflow.down = "two homes on one SQLite"
        bench.wake()
        assert soon(lambda: bench.get("/status")["mlflow"]["answers"] is False)
        shown = weighbridge("status")
        assert "deployer: it looks after no target, and what serves goes on: asking M" in shown
        services = json.loads(weighbridge("status", "--json"))["services"]
        [deployer] = [service for service in services if service["name"] == "deployer"]
        assert deployer["detail"] == "asking MLflow: two homes on one SQLite"


def test_the_deployer_of_another_home_at_the_same_port_is_not_heard(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with failing_deployer(tmp_path / "another", monkeypatch, "cluster"):
        assert "nothing serves" in weighbridge("status")


def test_logs_of_a_service_and_of_a_targets_versions(workspace: Workspace) -> None:
    folder = Supervisor(workspace.settings.home).logs
    folder.mkdir(parents=True)
    for program in ("mlflow", "shop@7", "shop@8"):
        (folder / f"{program}.log").write_text(f"first of {program}\nlast of {program}\n")
    assert weighbridge("logs", "mlflow") == "first of mlflow\nlast of mlflow\n"
    assert weighbridge("logs", "mlflow", "-n", "1") == "last of mlflow\n"
    both = weighbridge("logs", "shop", "-n", "1")
    assert "last of shop@7" in both
    assert "last of shop@8" in both
    assert "mlflow" not in both
    with pytest.raises(BadInput, match="'nobody': there is none; known: mlflow, shop"):
        weighbridge("logs", "nobody")


def test_a_log_is_followed_over_its_rotation(tmp_path: Path) -> None:
    log = tmp_path / "mlflow.log"
    log.write_text("before\n")
    lines = follow({"mlflow": log}, poll=0.01)
    first = threading.Timer(0.1, lambda: log.write_text("before\none\ntwo\n"))
    first.start()
    assert [next(lines), next(lines)] == [("mlflow", "one"), ("mlflow", "two")]
    rotated = threading.Timer(0.1, lambda: log.write_text("new\n"))
    rotated.start()
    assert next(lines) == ("mlflow", "new")
    first.join()
    rotated.join()
