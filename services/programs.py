"""The platform's services as programs of supervisord: command lines, environments and secrets.

::

    HOME/run/platform.json      their ports
    HOME/secrets/platform.json  what they must know and nobody else may: database URL, keys (mode
        0600)
"""

import base64
import contextlib
import hashlib
import json
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from weighbridge.core.files import replace_text
from weighbridge.core.service_addresses import HOST, WATCHDOG, Addresses
from weighbridge.core.settings import Settings
from weighbridge.flows import deployments, prefect_settings
from weighbridge.serving.supervised_program import Program
from weighbridge.serving.supervisor import Supervisor

SERVICES = ("prefect", "mlflow", "deployer", "worker", WATCHDOG)
WEBHOOK_SECRET = "WEIGHBRIDGE_WEBHOOK_SECRET"
ENCRYPTION_KEY = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"


def service_names(settings: Settings) -> list[str]:
    """Return the services to start: no MLflow server beside one of the user's own."""
    return [name for name in SERVICES if name != "mlflow" or not settings.tracking_uri]


def service_programs(settings: Settings, ports: Addresses, logs: Path) -> list[Program]:
    """Return the services as supervisord is to run them, with logs in this folder."""
    secrets_file = _write_secrets(settings)
    # A part of the environment, so that a change of a secret starts the services anew.
    digest = hashlib.sha256(secrets_file.read_bytes()).hexdigest()[:16]
    variables = {**environment(settings, ports), "WEIGHBRIDGE_SECRETS": digest}
    return [
        Program(
            name=name,
            command=_command(name, ports, settings),
            log=log_of(name, logs),
            # A folder named like a Python package in the working directory would shadow that
            # package.
            directory=logs,
            environment=variables,
            stop_seconds=15,
            secrets=secrets_file,
            mark=Supervisor(settings.home).mark_of(name),
            # Runs that a killed worker had begun go on by themselves.
            kill_leftovers=name != "worker",
            retries=1000,
        )
        for name in service_names(settings)
    ]


def log_of(name: str, logs: Path) -> Path:
    """Return the log file of a service."""
    return logs / f"{name}.log"


def environment(settings: Settings, ports: Addresses) -> dict[str, str]:
    """Return every setting of the services that is no secret.

    All of them are given, since supervisord may have been started with an older environment.
    """
    own_settings = {
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
        **{f"WEIGHBRIDGE_{name}": str(value) for name, value in own_settings.items()},
        **prefect_settings.for_platform(settings, ports.prefect_api),
        **_FOR_MLFLOW,
        "PYTHONUNBUFFERED": "1",
    }


_FOR_MLFLOW: Mapping[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SERVER_ALLOWED_HOSTS": f"{HOST},{HOST}:*,localhost,localhost:*",
    # The deployer listens on this machine, over plain HTTP.
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    # A webhook that was made a second ago counts.
    "MLFLOW_WEBHOOK_CACHE_TTL": "1",
}


def _command(name: str, ports: Addresses, settings: Settings) -> list[str]:
    commands: Mapping[str, Sequence[str]] = {
        "prefect": ("prefect", "server", "start", "--host", HOST, "--port", str(ports.prefect)),
        "mlflow": (
            *("weighbridge.registry.server", "--host", HOST, "--port", str(ports.mlflow)),
            *("--workers", "1"),
            *("--artifacts-destination", settings.mlflow_artifacts()),
        ),
        "deployer": ("weighbridge.deployer.deployer",),
        WATCHDOG: ("weighbridge.services.watchdog",),
        "worker": (
            *("prefect", "worker", "start", "--pool", deployments.POOL, "--type", "process"),
            *("--name", socket.gethostname(), "--install-policy", "never"),
        ),
    }
    return [sys.executable, "-m", *commands[name]]


def _write_secrets(settings: Settings) -> Path:
    """Write what must not be in a command line into a file, and return it; keys are made once."""
    path = settings.home / "secrets" / "platform.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    before: Mapping[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        before = json.loads(path.read_text())
    keys = {
        WEBHOOK_SECRET: before.get(WEBHOOK_SECRET) or secrets.token_urlsafe(32),
        # MLflow wants a key of Fernet's: 32 bytes in base64.
        ENCRYPTION_KEY: before.get(ENCRYPTION_KEY)
        or base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    text = json.dumps({**keys, **_database_urls(settings)}, indent=1)
    if not path.exists() or path.read_text() != text:
        replace_text(path, text, mode=0o600)
    return path


def _database_urls(settings: Settings) -> dict[str, str]:
    """Return the addresses of the databases, which may hold a password."""
    urls = {"MLFLOW_BACKEND_STORE_URI": settings.mlflow_uri()}
    if prefect_url := prefect_settings.postgresql_url(settings):
        urls["WEIGHBRIDGE_DATABASE_URL"] = settings.database_url.get_secret_value()
        urls["PREFECT_API_DATABASE_CONNECTION_URL"] = prefect_url
    return urls
