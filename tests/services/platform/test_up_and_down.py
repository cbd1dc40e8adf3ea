"""The platform: up with one call, kept up, its secrets kept, down without a trace."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.services.platform.conftest import command_lines, processes, settings
from tests.waiting import until
from weighbridge.core import service_addresses
from weighbridge.core.errors import BadInput
from weighbridge.core.processes import is_taken
from weighbridge.flows import prefect_settings
from weighbridge.services.platform import Platform
from weighbridge.serving.reaper import MARK, marked
from weighbridge.serving.supervised_program import Program
from weighbridge.serving.supervisor import Supervisor

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_services")]
SLEEP = [sys.executable, "-c", "import time; time.sleep(900)"]
SERVICES = ["gateway", "prefect", "mlflow", "deployer", "worker", "watchdog"]


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
