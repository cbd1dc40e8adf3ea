"""Services among the copies of an origin: what it imports, and what comes before one of them runs.

A supervisord among them starts its programs as copies of itself, and a Bento's launcher its worker.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.warm import bento_worker
from tests.warm.exec_with_imports import become, forget, preparations, reset_logging

SUPERVISORD = "supervisor.supervisord"
MLFLOW, LAUNCHER = "weighbridge.registry.server", "weighbridge.serving.bento_launcher"
LIBRARIES = (
    SUPERVISORD,
    "uvicorn",  # before MLflow's server, which looks whether it is there
    "prefect.main",
    "prefect.cli",
    "prefect.server.api.server",
    "prefect.workers.process",
    "weighbridge.flows.prefect_platform_server",
    "weighbridge.deployer.deployer",
    "weighbridge.services.watchdog",
    "mlflow.cli",
    "mlflow.server.fastapi_app",
    "bentoml._internal.bento.bento",
    "_bentoml_sdk",
    "_bentoml_impl.server.app",
)
READ_ENVIRONMENT = ("mlflow.server", "prometheus_client", "prefect.main")
"""Modules that go by the environment when they are imported: every copy imports them itself."""
_execve: Any = os.execve


def import_libraries() -> None:
    """Import what services import, and leave nothing of it that goes by this environment."""
    bento_worker.note_what_is_installed()
    for name in LIBRARIES:
        importlib.import_module(name)
    forget(lambda name: any(f"{name}.".startswith(f"{package}.") for package in READ_ENVIRONMENT))
    reset_logging()
    _configure_mlflows_logging()
    [_] = Path("/proc/self/task").iterdir()  # a copy would not have any other thread
    preparations.append(_prepare)


def _prepare(module: str) -> None:
    """Make ready for a module to run in this process."""
    functions: Any = os
    functions.execve = execve if module == SUPERVISORD else _execve
    processes: Any = subprocess
    is_launcher = module == LAUNCHER
    processes.Popen = bento_worker.start_worker if is_launcher else bento_worker.popen
    # A Bento's worker has moved into an environment that knows no Prefect.
    internals = sys.modules.get("weighbridge.flows.prefect_internals")
    if internals and module not in ("", SUPERVISORD, LAUNCHER):
        internals.read_settings_again()
    if module == MLFLOW:
        _configure_mlflows_logging()


def execve(program: str, argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Stand for `os.execve` in supervisord, whose programs all begin with the reaper."""
    if argv[0] == sys.executable:
        become(argv, environment)
    _execve(program, argv, environment)
    raise AssertionError("exec does not return")


def _configure_mlflows_logging() -> None:
    """Have MLflow set its own up, by the environment of now, as it does when it is imported."""
    sys.modules["mlflow.utils.logging_utils"]._configure_mlflow_loggers("mlflow")
