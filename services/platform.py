"""The machine as a platform: supervisord keeps Prefect, MLflow, the deployer, a worker and the
gateway alive.

::

    HOME/run/platform.json      their ports
    HOME/secrets/platform.json  what they must know and nobody else may: database URL, keys (mode
        0600)

Everything listens on the loopback interface alone. What serves does not need any of it.
"""

import base64
import contextlib
import hashlib
import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core import service_addresses
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.processes import is_taken
from weighbridge.core.progress import track
from weighbridge.core.service_addresses import HOST, Addresses
from weighbridge.core.settings import Settings
from weighbridge.flows import deployments, prefect_database, prefect_settings
from weighbridge.registry.database import make_schema, prepare_database
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.reaper import kill_marked
from weighbridge.serving.supervised_program import Program
from weighbridge.serving.supervisor import Supervisor

START_TIMEOUT = 300.0
"""Seconds for all of them together; the first start makes databases."""
WEBHOOK_SECRET, ENCRYPTION_KEY = (
    "WEIGHBRIDGE_WEBHOOK_SECRET",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
)
_SERVICES = ("prefect", "mlflow", "deployer", "worker")


class Component(BaseModel):
    """A part of the platform, as seen from outside."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: str = Field(
        description="As supervisord says: RUNNING, STARTING, BACKOFF, FATAL, …; STOPPED: not up."
    )
    since: float = Field(
        0.0, description="Unix time at which its process started; 0: it does not run."
    )
    address: str = ""
    answers: bool = False
    log: Path


class Platform:
    """The services of one installation."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._home = settings.home
        self._host = Supervisor(settings.home)

    def up(self) -> list[Component]:
        """Have every service run and answer; those that do so already are left alone.

        Raises:
            BadInput: a port is somebody else's.
            Unavailable: one of them does not start; the end of its log is told.
        """
        self._refuse_taken()
        ports = service_addresses.choose(self._settings)
        self._prepare_databases()
        self._host.ensure()
        Gateway(self._home).ensure()
        programs = self._programs(ports)
        for program in programs:
            self._host.add(program)
        self._await([program.name for program in programs])
        service_addresses.wake_deployer(
            self._home, "", "start"
        )  # MLflow answers now: the webhook can be made
        deployments.register(ports.prefect_api, self._environment(ports), self._home)
        return self.components()

    def down(self) -> list[str]:
        """End every program, what serves included, and leave no process; `up` brings all of it
        back.

        Returns the names of what ran.
        """
        running = [state.name for state in self._host.states() if state.pid]
        self._host.shutdown(forget=_SERVICES)
        kill_marked(self._mark(""))
        return running

    def components(self) -> list[Component]:
        """Every service, whether it runs or not."""
        ports = service_addresses.read(self._home)
        return [self._gateway(), *(self._component(name, ports) for name in self._names())]

    def _names(self) -> list[str]:
        """An MLflow server of the user's own is used, and none started."""
        return [name for name in _SERVICES if name != "mlflow" or not self._settings.tracking_uri]

    def _gateway(self) -> Component:
        state = self._host.state("gateway")
        found = Gateway(self._home)
        up = bool(state and state.up)
        return Component(
            name="gateway",
            state=state.state if state else "STOPPED",
            since=state.since if state and up else 0.0,
            address=f"http://{HOST}:{found.metrics_port}/metrics" if up else "",
            answers=up and found.running(),
            log=self._host.logs / "gateway.log",
        )

    def _component(self, name: str, ports: Addresses | None) -> Component:
        state = self._host.state(name)
        up = bool(state and state.up and ports)
        return Component(
            name=name,
            state=state.state if state else "STOPPED",
            since=state.since if state and up else 0.0,
            address=ports.url(name) if ports and up and name != "worker" else "",
            answers=up
            and ports is not None
            and _answers(name, ports, state.since if state else 0.0),
            log=self._log(name),
        )

    def _refuse_taken(self) -> None:
        """Before anything changes."""
        for name in self._names():
            port = getattr(self._settings, f"{name}_port", 0)
            state = self._host.state(name)
            before = service_addresses.read(self._home)
            ours = state is not None and before is not None and getattr(before, name, 0) == port
            if port and not ours and is_taken(port, HOST):
                remedy = f"stop it, or choose another with WEIGHBRIDGE_{name.upper()}_PORT (0: any)"
                raise BadInput(
                    f"starting {name}", f"port {port} belongs to another program", remedy
                )

    def _prepare_databases(self) -> None:
        """What can be made before the servers start: fast where a copy of an empty database will
        do.
        """
        if not self._settings.tracking_uri:
            prepare_database(self._settings)
        if self._settings.postgresql("psycopg2"):
            make_schema(self._settings, prefect_settings.POSTGRESQL_SCHEMA)
        else:
            prefect_database.prepare_database(self._settings)

    def _programs(self, ports: Addresses) -> list[Program]:
        secret = self._secrets()
        digest = hashlib.sha256(secret.read_bytes()).hexdigest()[
            :16
        ]  # so that a change of one starts them anew
        environment = {**self._environment(ports), "WEIGHBRIDGE_SECRETS": digest}
        return [
            Program(
                name=name,
                command=_command(name, ports, self._settings),
                log=self._log(name),
                # One named like a Python package in the working directory would shadow that
                # package.
                directory=self._host.logs,
                environment=environment,
                stop_seconds=15,
                secrets=secret,
                # Runs that a killed worker had begun go on by themselves.
                mark=self._mark(name),
                kill_leftovers=name != "worker",
                retries=1000,
            )
            for name in self._names()
        ]

    def _environment(self, ports: Addresses) -> dict[str, str]:
        """Everything that is no secret, said in full: supervisord may be older than today's
        environment.
        """
        settings = self._settings
        own = {
            "HOME": settings.home,
            "CACHE": settings.cache,
            "TRACKING_URI": settings.tracking_uri,
            "ARTIFACT_ROOT": settings.artifact_root,
            "PREFECT_PORT": ports.prefect,
            "MLFLOW_PORT": ports.mlflow,
            "DEPLOYER_PORT": ports.deployer,
            "METRICS_PORT": settings.metrics_port,
            "RECONCILE_SECONDS": settings.reconcile_seconds,
            "HISTORY_KEPT": settings.history_kept,
            "FAST_START": settings.fast_start,
        }
        return {
            **{f"WEIGHBRIDGE_{name}": str(value) for name, value in own.items()},
            **prefect_settings.for_platform(settings, ports.prefect_api),
            **_for_mlflow(settings),
            "PYTHONUNBUFFERED": "1",
        }

    def _secrets(self) -> Path:
        """The file with what must not be in a command line; keys are made once."""
        path = self._home / "secrets" / "platform.json"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before: Mapping[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            before = json.loads(path.read_text())
        kept = {
            WEBHOOK_SECRET: before.get(WEBHOOK_SECRET) or secrets.token_urlsafe(32),
            ENCRYPTION_KEY: before.get(ENCRYPTION_KEY)
            or base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        }
        text = json.dumps({**kept, **_of_databases(self._settings)}, indent=1)
        if not path.exists() or path.read_text() != text:
            replace_text(path, text, mode=0o600)
        return path

    def _await(self, names: list[str]) -> None:
        """Until every one answers, telling how many do."""
        deadline = time.monotonic() + START_TIMEOUT
        with track("starting", len(names), "services") as tell:
            while missing := [
                part for part in self.components() if part.name in names and not part.answers
            ]:
                tell(len(names) - len(missing))
                late = time.monotonic() > deadline
                for part in missing:
                    if part.state == "FATAL" or late:
                        self._give_up(part)
                time.sleep(0.2)
            tell(len(names))

    def _give_up(self, part: Component) -> None:
        words = (
            part.log.read_text(errors="replace").strip().splitlines()[-8:]
            if part.log.exists()
            else []
        )
        raise Unavailable(
            f"starting {part.name}",
            "it does not answer. Its log ends:\n" + "\n".join(words) + "\n",
            f"whole log: {part.log}; the others stay up, weighbridge down stops them",
        )

    def _log(self, name: str) -> Path:
        return self._host.logs / f"{name}.log"

    def _mark(self, name: str) -> str:
        return f"{self._home}:{name}"


def _command(name: str, ports: Addresses, settings: Settings) -> list[str]:
    module = {
        "prefect": ["prefect", "server", "start", "--host", HOST, "--port", str(ports.prefect)],
        "mlflow": [
            "mlflow",
            "server",
            "--host",
            HOST,
            "--port",
            str(ports.mlflow),
            "--workers",
            "1",
            "--artifacts-destination",
            settings.mlflow_artifacts(),
        ],
        "deployer": ["weighbridge.deployer.deployer"],
        "worker": [
            "prefect",
            "worker",
            "start",
            "--pool",
            deployments.POOL,
            "--type",
            "process",
            "--name",
            socket.gethostname(),
            "--install-policy",
            "never",
        ],
    }
    return [sys.executable, "-m", *module[name]]


def _for_mlflow(settings: Settings) -> dict[str, str]:
    """Our receiver listens on this machine, over plain HTTP; a webhook made a second ago counts."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{HOST},{HOST}:*,localhost,localhost:*",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }


def _of_databases(settings: Settings) -> dict[str, str]:
    """Their addresses hold a password."""
    found = {"MLFLOW_BACKEND_STORE_URI": settings.mlflow_uri()}
    if settings.postgresql("psycopg2"):
        found["WEIGHBRIDGE_DATABASE_URL"] = settings.database_url.get_secret_value()
        found["PREFECT_API_DATABASE_CONNECTION_URL"] = prefect_settings.postgresql(settings)
    return found


def _answers(name: str, ports: Addresses, since: float) -> bool:
    checks: Mapping[str, Callable[[], bool]] = {
        "prefect": lambda: service_addresses.answers(f"{ports.prefect_api}/health"),
        "mlflow": lambda: service_addresses.answers(f"{ports.url('mlflow')}/health"),
        "deployer": lambda: service_addresses.answers(f"{ports.url('deployer')}/health"),
        "worker": lambda: _polls(ports.prefect_api, since),
    }
    return checks[name]()


def _polls(api: str, since: float) -> bool:
    """Whether a worker of our pool has said since then that it is there."""
    try:
        found = httpx.post(
            f"{api}/work_pools/{deployments.POOL}/workers/filter",
            json={},
            timeout=5,
            trust_env=False,
        )
    except httpx.HTTPError:
        return False
    if not found.is_success:
        return False
    return any(
        worker["status"] == "ONLINE"
        and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() > since
        for worker in found.json()
    )
