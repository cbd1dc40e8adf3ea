"""The platform: up with one call, kept up, its secrets kept, down without a trace."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from click.testing import CliRunner

from tests.conftest import MACHINE_CACHE
from tests.stand_ins.postgresql import PASSWORD, Postgresql, programs
from tests.waiting import until
from weighbridge.cli.main import cli
from weighbridge.core import loopback, service_addresses
from weighbridge.core.errors import BadInput
from weighbridge.core.processes import is_taken
from weighbridge.core.settings import Settings
from weighbridge.flows import deployment_copies, deployments, prefect_settings
from weighbridge.flows.pools.templates import SECRET_VARIABLES
from weighbridge.registry import Registry
from weighbridge.services.platform import Platform
from weighbridge.serving.reaper import MARK, marked
from weighbridge.serving.supervised_program import Program
from weighbridge.serving.supervisor import Supervisor

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_services")]
ROOT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, "-c", "import time; time.sleep(900)"]
SERVICES = ["gateway", "prefect", "mlflow", "deployer", "worker", "watchdog"]


def settings(home: Path, **changes: Any) -> Settings:
    anywhere = {"prefect_port": 0, "mlflow_port": 0, "deployer_port": 0, "metrics_port": 0}
    return Settings(home=home, cache=MACHINE_CACHE, **anywhere, **changes)


@pytest.fixture(scope="module")
def _metrics_anywhere() -> Iterator[None]:
    """The gateway reads its port from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHBRIDGE_METRICS_PORT", "0")
        patch.setenv("FOR_NOBODY_HERE", "hidden")
        patch.delenv("PREFECT_API_URL", raising=False)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, _metrics_anywhere: None) -> Iterator[Path]:
    """Of a platform that is up; tests leave it up."""
    home = tmp_path_factory.mktemp("platform")
    # By Prefect's own command here; what it makes is copied into the homes after this one.
    deployment_copies.file_in(MACHINE_CACHE).unlink(missing_ok=True)
    # As homes were made before.
    home.chmod(0o755)
    try:
        Platform(settings(home)).up()
        yield home
    finally:
        Platform(settings(home)).down()


def processes(home: Path) -> dict[str, int]:
    return {state.name: state.pid for state in Supervisor(home).states()}


def command_lines() -> str:
    found = []
    for process in psutil.process_iter():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return "\n".join(found)


def prefect(home: Path, path: str, **body: Any) -> httpx.Response:
    ports = service_addresses.read(home)
    assert ports is not None
    url, login = f"{ports.prefect_api}/{path}", prefect_settings.login(home)
    return loopback.post(url, body, 60, auth=login)


def deployment(home: Path, name: str) -> dict[str, Any]:
    [found] = [one for one in prefect(home, "deployments/filter").json() if one["name"] == name]
    return dict(found)


def test_every_service_answers_for_this_machine_alone(home: Path) -> None:
    platform = Platform(settings(home))
    assert [part.name for part in platform.services()] == SERVICES
    assert all(part.answers for part in platform.services())
    # Supervisord calls RUNNING what has run for ten seconds.
    until(lambda: all(part.state == "RUNNING" and part.since for part in platform.services()))
    ours = set(marked(f"{home}:"))
    listening = [
        connection.laddr.ip
        for pid in ours
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}


def test_up_again_leaves_everything_alone(home: Path) -> None:
    before, began = processes(home), time.monotonic()
    Platform(settings(home)).up()
    assert processes(home) == before
    assert time.monotonic() - began < 20


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


def test_secrets_are_in_one_file_of_the_owners_and_in_no_command_line(home: Path) -> None:
    path = home / "secrets" / "platform.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    lines = command_lines() + "".join(
        one.read_text() for one in (home / "run" / "programs").iterdir()
    )
    kept = json.loads(path.read_text())
    assert {"WEIGHBRIDGE_WEBHOOK_SECRET", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"} <= set(kept)
    assert not [name for name, value in kept.items() if value in lines]
    assert (prefect_settings.login(home) or ("", ""))[1] not in lines


def test_prefect_takes_orders_from_whoever_is_logged_in_and_from_no_page_of_the_web(
    home: Path,
) -> None:
    ports = service_addresses.read(home)
    assert ports is not None
    login = prefect_settings.login(home)

    def asked(**options: Any) -> httpx.Response:
        return httpx.post(f"{ports.prefect_api}/flows/filter", json={}, timeout=60, **options)

    assert asked().status_code == 401
    assert asked(auth=("weighbridge", "guess")).status_code == 401
    foreign = asked(auth=login, headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in foreign.headers
    own = asked(auth=login, headers={"Origin": f"http://localhost:{ports.prefect}"})
    assert own.headers["access-control-allow-origin"] == f"http://localhost:{ports.prefect}"
    assert asked(auth=login, headers={"Host": "evil.example"}).status_code == 400
    # Its pages ask for the login by themselves, so they are shown without one.
    assert httpx.get(ports.url("prefect"), timeout=60, follow_redirects=True).is_success


def test_mlflow_answers_by_its_own_names_alone(home: Path) -> None:
    ports = service_addresses.read(home)
    assert ports is not None
    url = f"{ports.url('mlflow')}/api/2.0/mlflow/experiments/create"
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = httpx.post(url, json={"name": "theirs"}, headers=headers, timeout=60)
        assert answer.status_code == 403


def test_a_service_knows_its_own_secrets_and_nobody_elses(home: Path) -> None:
    secret = {"auth": "_API_AUTH_STRING", "webhook": "WEBHOOK_SECRET", "key": "ENCRYPTION_KEY"}
    known = {}
    for name in (name for name in SERVICES if name != "gateway"):
        environment = psutil.Process(processes(home)[name]).environ()
        assert "FOR_NOBODY_HERE" not in environment
        known[name] = {
            kind
            for kind, part in secret.items()
            for variable in environment
            if variable.endswith(part)
        }
    assert known == {
        "prefect": {"auth"},
        "mlflow": {"key"},
        "deployer": {"auth", "webhook"},
        "worker": {"auth"},
        "watchdog": set(),
    }


def test_what_lies_in_the_home_is_its_owners_alone(home: Path) -> None:
    databases = [*home.rglob("*.db"), *home.rglob("*.db-wal")]
    assert len(databases) >= 2
    for path in (home, home / "prefect", home / "run", home / "secrets", *databases):
        assert path.stat().st_mode & 0o077 == 0, path


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


def test_whatever_is_killed_is_back_by_itself(home: Path) -> None:
    before = processes(home)
    assert set(before) >= set(SERVICES)
    for name in SERVICES:
        os.kill(before[name], signal.SIGKILL)

    def back() -> bool:
        now = processes(home)
        parts = Platform(settings(home)).services()
        return all(part.answers and now[part.name] != before[part.name] for part in parts)

    until(back, 90, poll=0.2)


def test_after_a_power_cut_up_ends_what_is_left_over_and_brings_back_what_served(
    home: Path,
) -> None:
    host, ports = Supervisor(home), service_addresses.read(home)
    assert ports is not None
    host.add(Program("shop@7", SLEEP, host.logs / "shop.log", host.logs))
    os.kill(int((home / "run" / "supervisord.pid").read_text()), signal.SIGKILL)
    until(lambda: not is_taken(ports.mlflow), 30)
    for path in (*(home / "run").rglob("*.sock"), *(home / "run").rglob("*.pid")):
        path.unlink()
    address = ("127.0.0.1", ports.mlflow)
    code = f"import http.server as h; h.HTTPServer({address}, None).serve_forever()"
    orphan = subprocess.Popen([sys.executable, "-c", code], env={MARK: host.mark_of("mlflow")})
    until(lambda: is_taken(ports.mlflow), 30)
    given = {f"{name}_port": port for name, port in ports.model_dump().items()}
    services = Platform(settings(home).model_copy(update=given)).up()
    assert all(part.answers for part in services)
    assert orphan.wait(10) == -signal.SIGKILL
    until(lambda: processes(home)["shop@7"], 30)
    host.remove("shop@7")


def runs(pid: int) -> bool:
    """Whether it has not ended; whoever inherited it may not have asked for it yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_down_leaves_no_process_and_up_brings_back_what_served(home: Path) -> None:
    host = Supervisor(home)
    host.add(Program("shop@7", SLEEP, host.logs / "shop.log", host.logs))
    platform = Platform(settings(home))
    until(lambda: processes(home)["shop@7"], 90)
    pids = [*processes(home).values(), *marked(f"{home}:")]
    ports = service_addresses.read(home)
    assert set(platform.down()) == {*SERVICES, "shop@7"}
    assert not [pid for pid in pids if runs(pid)]
    assert not [part for part in platform.services() if part.state != "STOPPED"]
    assert platform.down() == []
    platform.up()
    assert service_addresses.read(home) == ports
    assert processes(home)["shop@7"]
    host.remove("shop@7")


def test_a_port_of_somebody_else_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        mine = settings(tmp_path / "new").model_copy(
            update={"mlflow_port": theirs.getsockname()[1]}
        )
        with pytest.raises(
            BadInput, match=r"starting mlflow: port \d+ belongs to another program; .*MLFLOW_PORT"
        ):
            Platform(mine).up()
    assert not (tmp_path / "new").exists()


def test_an_mlflow_server_of_the_users_is_left_to_them(tmp_path: Path) -> None:
    theirs = settings(tmp_path, tracking_uri="http://mlflow.example")
    assert [part.name for part in Platform(theirs).services()] == [
        "gateway",
        "prefect",
        "deployer",
        "worker",
        "watchdog",
    ]


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
