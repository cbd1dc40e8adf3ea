"""The platform's services as programs of supervisord: command lines, environments and secrets.

::

    HOME/run/platform.json      their ports
    HOME/secrets/platform.json  keys that are made once (mode 0600)
    HOME/secrets/NAME.json      what one service must know, and no other one (mode 0600)
    HOME/secrets/prefect        login of Prefect's API and UI
    HOME/secrets/prefect.toml   a profile of Prefect's own command, with address and login
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
from typing import Final

from weighbridge.core import own_secrets
from weighbridge.core.files import replace_text
from weighbridge.core.proxies import direct_hosts
from weighbridge.core.service_addresses import HOST, WATCHDOG, Addresses
from weighbridge.core.settings import Settings, names
from weighbridge.flows import deployments, prefect_settings
from weighbridge.serving.supervised_program import Program
from weighbridge.serving.supervisor import Supervisor

SERVICES = ("prefect", "mlflow", "deployer", "worker", WATCHDOG)
WEBHOOK_SECRET: Final = "WEIGHBRIDGE_WEBHOOK_SECRET"
PREFECT_DATABASE: Final = "PREFECT_API_DATABASE_CONNECTION_URL"
ENCRYPTION_KEY: Final = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"


def service_names(settings: Settings) -> list[str]:
    """Return the services to start: no MLflow server beside one of the user's own."""
    return [name for name in SERVICES if name != "mlflow" or not settings.tracking_uri]


def service_programs(settings: Settings, ports: Addresses, logs: Path) -> list[Program]:
    """Return the services as supervisord is to run them, with logs in this folder."""
    secrets_of = _secrets(settings)
    _write_profile(settings, ports)
    return [
        _program(name, settings, ports, logs, secrets_of[name]) for name in service_names(settings)
    ]


def _program(
    name: str,
    settings: Settings,
    ports: Addresses,
    logs: Path,
    secrets_of_it: Mapping[own_secrets.Variable, str],
) -> Program:
    secrets_file = _folder(settings) / f"{name}.json"
    text = json.dumps(secrets_of_it, indent=1)
    _write(secrets_file, text)
    # A part of the environment, so that a change of a secret starts the service anew.
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Program(
        name=name,
        command=_command(name, ports, settings),
        log=log_of(name, logs),
        # A folder named like a Python package in the working directory would shadow that package.
        directory=logs,
        environment={**environment(settings, ports), "WEIGHBRIDGE_SECRETS": digest},
        stop_seconds=15,
        secrets=secrets_file,
        inherited=inherited(name, settings),
        mark=Supervisor(settings.home).mark_of(name),
        # Not of those that make environments and Bentos, which others may be meant to read.
        umask="077" if name in ("prefect", "mlflow") else "",
        # Runs that a killed worker had begun go on by themselves.
        kill_leftovers=name != "worker",
        retries=1000,
    )


def log_of(name: str, logs: Path) -> Path:
    """Return the log file of a service."""
    return logs / f"{name}.log"


def environment(settings: Settings, ports: Addresses) -> dict[str, str]:
    """Return every setting of the services that is no secret.

    All of them are given, since supervisord may have been started with an older environment.
    """
    own_settings = {
        "HOME": settings.home,
        "STORE": settings.store,
        "CACHE": settings.cache,
        "ARTIFACT_ROOT": settings.artifact_root,
        "PREFECT_PORT": ports.prefect,
        "MLFLOW_PORT": ports.mlflow,
        "DEPLOYER_PORT": ports.deployer,
        "METRICS_PORT": settings.metrics_port,
        "RECONCILE_SECONDS": settings.reconcile_seconds,
        "HISTORY_KEPT": settings.history_kept,
        "FAST_START": settings.fast_start,
        "ALLOWED_HOSTS": settings.allowed_hosts,
        "WORKER_VARIABLES": settings.worker_variables,
        "RECIPE_VARIABLES": settings.recipe_variables,
    }
    return {
        **{f"WEIGHBRIDGE_{name}": str(value) for name, value in own_settings.items()},
        **prefect_settings.for_platform(settings, ports.prefect_api),
        **direct_hosts(),
        **_FOR_MLFLOW,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(
            pattern for host in settings.hosts() for pattern in (host, f"{host}:*")
        ),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(settings.origins(ports.mlflow)),
        "PYTHONUNBUFFERED": "1",
    }


_FOR_MLFLOW: Mapping[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # The deployer listens on this machine, over plain HTTP.
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    # A webhook that was made a second ago counts.
    "MLFLOW_WEBHOOK_CACHE_TTL": "1",
}


_OF_EVERYBODY = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LC_*", "XDG_*"),
    *("PYTHON*", "VIRTUAL_ENV", "PG*", "LD_LIBRARY_PATH", "COVERAGE_*"),
    *("SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "*_PROXY", "*_proxy"),
)
_FOR_BUCKETS = ("AWS_*", "GOOGLE_*", "AZURE_*", "MLFLOW_*")
# A kubeconfig's login may be a command: of AWS and Azure with the variables of their buckets.
_FOR_CLUSTERS = ("KUBECONFIG", "KUBERNETES_*", "CLOUDSDK_*")
# Not `PREFECT_*`: the user's own key for Prefect Cloud is for nobody here.
_FOR_SERVER = tuple(f"PREFECT_{part}_*" for part in ("SERVER", "UI", "LOGGING"))
_FOR_FLOWS = tuple(
    f"PREFECT_{part}_*"
    for part in ("LOGGING", "CLIENT", "WORKER", "RUNNER", "RESULTS", "TASKS", "FLOWS")
)
_FOR_RUNS = (
    *("HF_*", "HUGGING*", "TRANSFORMERS_*", "TOKENIZERS_*", "TORCH*", "PYTORCH_*", "VLLM_*"),
    *("CUDA_*", "NVIDIA_*", "NCCL_*", "GLOO_*", "ROCR_*", "HIP_*"),
    *("OMP_*", "GOMP_*", "MKL_*", "OPENBLAS_*", "BENTOML_*"),
    *("UV_*", "PIP_*", "CC", "CXX", "CMAKE_*"),
)
_INHERITED: Mapping[str, Sequence[str]] = {
    "prefect": (*_OF_EVERYBODY, *_FOR_SERVER),
    "mlflow": (*_OF_EVERYBODY, *_FOR_BUCKETS),
    "deployer": (*_OF_EVERYBODY, *_FOR_BUCKETS, *_FOR_CLUSTERS, *_FOR_FLOWS, *_FOR_RUNS),
    "worker": (*_OF_EVERYBODY, *_FOR_BUCKETS, *_FOR_CLUSTERS, *_FOR_FLOWS, *_FOR_RUNS),
    WATCHDOG: _OF_EVERYBODY,
}
"""Environment variables that a service gets from whoever called `weighbridge up`: the deployer
builds and starts Bentos, the worker runs releases.
"""


def inherited(name: str, settings: Settings) -> tuple[str, ...]:
    """Return the patterns of the variables that a service inherits."""
    further = names(settings.worker_variables) if name == "worker" else []
    return (*_INHERITED[name], *further)


def _command(name: str, ports: Addresses, settings: Settings) -> list[str]:
    commands: Mapping[str, Sequence[str]] = {
        "prefect": ("weighbridge.flows.prefect_platform_server", str(ports.prefect)),
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


def _secrets(settings: Settings) -> dict[str, dict[own_secrets.Variable, str]]:
    """Return by service what must not be in a command line; keys are made once."""
    path = _folder(settings) / "platform.json"
    kept: Mapping[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        kept = json.loads(path.read_text())
    webhook_secret = kept.get(WEBHOOK_SECRET) or secrets.token_urlsafe(32)
    # MLflow wants a key of Fernet's: 32 bytes in base64.
    encryption_key = (
        kept.get(ENCRYPTION_KEY) or base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    )
    _write(path, json.dumps({WEBHOOK_SECRET: webhook_secret, ENCRYPTION_KEY: encryption_key}))
    login = own_secrets.ensure(settings.home, "prefect")
    # How MLflow is reached by whoever opens it as a database, or as a server of the user's.
    mlflow: dict[own_secrets.Variable, str] = {"WEIGHBRIDGE_TRACKING_URI": settings.tracking_uri}
    if database_url := settings.database_url.get_secret_value():
        mlflow["WEIGHBRIDGE_DATABASE_URL"] = database_url
    prefect: dict[own_secrets.Variable, str] = {"PREFECT_SERVER_API_AUTH_STRING": login}
    if prefect_database := prefect_settings.postgresql_url(settings):
        prefect[PREFECT_DATABASE] = prefect_database
    return {
        "prefect": prefect,
        "mlflow": {
            "MLFLOW_BACKEND_STORE_URI": settings.mlflow_uri(),
            ENCRYPTION_KEY: encryption_key,
        },
        "deployer": {"PREFECT_API_AUTH_STRING": login, WEBHOOK_SECRET: webhook_secret, **mlflow},
        "worker": {"PREFECT_API_AUTH_STRING": login, **mlflow},
        # By it the watchdog knows that no server of MLflow's is to be watched.
        WATCHDOG: {"WEIGHBRIDGE_TRACKING_URI": settings.tracking_uri},
    }


def _write_profile(settings: Settings, ports: Addresses) -> None:
    """Write a profile with which Prefect's own command reaches the platform's API."""
    login = own_secrets.ensure(settings.home, "prefect")
    profile = f"""\
active = "weighbridge"

[profiles.weighbridge]
PREFECT_API_URL = "{ports.prefect_api}"
PREFECT_API_AUTH_STRING = "{login}"
"""
    _write(_folder(settings) / "prefect.toml", profile)


def _folder(settings: Settings) -> Path:
    return settings.home / "secrets"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        replace_text(path, text, mode=0o600)
