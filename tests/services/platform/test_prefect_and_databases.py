"""The platform's Prefect: pools, deployments and runs are there, on SQLite and on PostgreSQL."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from click.testing import CliRunner

from tests.conftest import MACHINE_CACHE
from tests.services.platform.conftest import command_lines, prefect, settings
from tests.stand_ins.postgresql import PASSWORD, Postgresql, programs
from tests.waiting import until
from weighbridge.cli.main import cli
from weighbridge.core import service_addresses
from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings
from weighbridge.flows import deployment_copies, deployments
from weighbridge.flows.pools.templates import SECRET_VARIABLES
from weighbridge.registry import Registry
from weighbridge.services.platform import Platform

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_services")]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", autouse=True)
def _by_prefects_own_command() -> None:
    """The deployments of the first home; what it makes is copied into the homes after this one."""
    deployment_copies.file_in(MACHINE_CACHE).unlink(missing_ok=True)


def deployment(home: Path, name: str) -> dict[str, Any]:
    [found] = [one for one in prefect(home, "deployments/filter").json() if one["name"] == name]
    return dict(found)


def test_work_pools_are_made_once_changed_and_told_what_they_lack(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(home))
    for name in SECRET_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")

    def apply(kind: str, *options: str) -> dict[str, Any]:
        arguments = ["pools", "apply", "--type", kind, "--json", *options]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        return dict(json.loads(done.stdout))

    for kind in ("kubernetes", "ecs"):
        assert apply(kind)["action"] == "created"
    block = "weighbridge-aws-secret-access-key"
    assert apply("docker", "--dry-run")["action"] == "created"
    assert apply("docker")["missing_blocks"] == [block]
    made = apply("docker", "--save-secrets")
    assert (made["action"], made["missing_blocks"]) == ("unchanged", [])
    assert apply("docker", "--image", "mine", "--limit", "2")["changes"] == [
        "variables.properties.image.default: nothing -> mine",
        "jobs at once: None -> 2",
    ]
    with pytest.raises(BadInput, match="of type docker"):
        apply("process", "--pool", "docker")
    pools = prefect(home, "work_pools/filter")
    assert {"docker", "kubernetes", "ecs"} <= {pool["name"] for pool in pools.json()}
    assert "hunter2" not in pools.text


def test_every_deployment_is_there_and_what_has_a_schedule_is_planned(home: Path) -> None:
    wanted = {
        one["name"]: one
        for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    }
    assert set(wanted) == set(deployments.NAMES)
    for name, one in wanted.items():
        assert len(deployment(home, name)["schedules"]) == len(one.get("schedules", []))

    def planned() -> set[str]:
        runs = prefect(
            home, "flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}}
        ).json()
        return {run["deployment_id"] for run in runs}

    ids = {deployment(home, name)["id"] for name, one in wanted.items() if one.get("schedules")}
    assert ids
    until(lambda: ids <= planned(), 90, poll=0.2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finetune": {"learning_rte": 1}}, ["recipe.finetune", "learning_rte"]),
        (
            {"deploy": {"target": {"kind": "local", "host": 5}}},
            ["recipe.deploy.target.host", "not of type 'string'"],
        ),
        # Of fields that several kinds of targets have, Prefect's validator may name `kind` instead.
        ({"deploy": {"target": {"kind": "local", "port": 99999999}}}, ["recipe.deploy.target"]),
        ({"name": None}, ["recipe", "name"]),
    ],
)
def test_a_bad_recipe_is_refused_when_it_is_submitted_by_field(
    home: Path, change: dict[str, Any], words: list[str]
) -> None:
    recipe = yaml.safe_load((ROOT / "configs" / "starter.yaml").read_text()) | change
    path = f"deployments/{deployment(home, 'release')['id']}/create_flow_run"
    answer = prefect(home, path, parameters={"recipe": recipe})
    assert answer.status_code == httpx.codes.CONFLICT
    assert all(word in answer.text for word in words)


def test_the_worker_runs_what_is_asked_for_in_the_ui(home: Path) -> None:
    reconcile = deployment(home, "reconcile")
    assert "run_request reconcile" in reconcile["job_variables"]["command"]
    run = prefect(home, f"deployments/{reconcile['id']}/create_flow_run").json()

    def state() -> str:
        [found] = prefect(home, "flow_runs/filter", flow_runs={"id": {"any_": [run["id"]]}}).json()
        return str(found["state_type"])

    until(lambda: state() in ("COMPLETED", "FAILED", "CRASHED"), 120, poll=0.2)
    assert state() == "COMPLETED"
    # By the deployer: the worker's process imports no Prefect.
    log = home / "run" / "logs" / "deployer.log"
    until(lambda: "carried out a run of reconcile" in log.read_text(), 20, poll=0.2)


def test_who_writes_at_once_on_sqlite_waits_and_is_not_sent_away(home: Path) -> None:
    flow = prefect(home, "flows/", name="written at once").json()["id"]
    answers = _at_once(60, lambda n: prefect(home, "flow_runs/", flow_id=flow).status_code)
    assert set(answers) == {201}


def test_a_run_started_here_reports_to_the_platform(home: Path) -> None:
    code = (
        "from weighbridge.core.settings import Settings\n"
        "from weighbridge.flows.prefect_server import prefect_api\n"
        "with prefect_api(Settings()) as api:\n"
        "    import prefect\n"
        "    prefect.flow(lambda: None, name='mine', flow_run_name='seen by all')()\n"
        "    print(api)"
    )
    environment = {**os.environ, "WEIGHBRIDGE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    ports = service_addresses.read(home)
    assert ports is not None
    assert done.stdout.split()[-1] == ports.prefect_api
    assert "seen by all" in [run["name"] for run in prefect(home, "flow_runs/filter").json()]


@pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed")
@pytest.mark.usefixtures("_metrics_anywhere")
def test_on_postgresql_both_keep_everything_there_and_deployments_are_those_of_the_first_home(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deploy(*_: object) -> None:
        raise AssertionError("those of the first home are to be copied")

    monkeypatch.setattr(deployments, "deploy", deploy)
    with Postgresql() as database:
        mine = settings(tmp_path / "home", database_url=database.url)
        platform = Platform(mine)
        try:
            assert all(part.answers for part in platform.up())
            assert PASSWORD not in command_lines()
            assert not list((tmp_path / "home").rglob("*.db"))
            _register(mine, "shop")
            assert Registry.connect(mine).names() == ["shop"]
            answers = _at_once(
                60, lambda n: prefect(tmp_path / "home", "flows/", name=f"flow {n}").status_code
            )
            assert set(answers) <= {200, 201}
            copied = registered(tmp_path / "home")
            # Prefect's own command alone would have it so.
            assert "prefect.deployments.steps" in str(copied)
            assert copied == registered(home)
            assert all(one["labels"]["prefect.flow.id"] for one in copied.values())
        finally:
            platform.down()


def registered(home: Path) -> dict[str, dict[str, Any]]:
    """What Prefect knows of the deployments, but for their numbers, times and this home; of the
    label with the flow's id, whether it is right.
    """
    of_a_home = {"id", "created", "updated", "flow_id", "last_polled", "status", "work_queue_id"}
    found = json.loads(
        json.dumps(prefect(home, "deployments/filter").json()).replace(str(home), "")
    )
    return {
        one["name"]: {
            **{name: value for name, value in one.items() if name not in of_a_home},
            "labels": {
                **one["labels"],
                "prefect.flow.id": one["flow_id"] == one["labels"]["prefect.flow.id"],
            },
            "global_concurrency_limit": (one["global_concurrency_limit"] or {}).get("limit"),
            "schedules": [
                {
                    **{name: schedule[name] for name in ("active", "slug")},
                    # From when it counts is whenever the first of the machine's homes was made.
                    "schedule": schedule["schedule"] | {"anchor_date": "of the first"},
                }
                for schedule in one["schedules"]
            ],
        }
        for one in found
    }


def _register(mine: Settings, name: str) -> None:
    """Through MLflow's server."""
    ports = service_addresses.read(mine.home)
    assert ports is not None
    url = f"{ports.url('mlflow')}/api/2.0/mlflow/registered-models/create"
    httpx.post(url, json={"name": name}, timeout=60).raise_for_status()


def _at_once(count: int, call: Callable[[int], int]) -> list[int]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(call, range(count)))
