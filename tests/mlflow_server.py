"""A real MLflow server for a test."""

import base64
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx

from tests.conftest import MACHINE_CACHE
from weighbridge.core import loopback
from weighbridge.core.processes import Process, free_port
from weighbridge.core.settings import Settings
from weighbridge.registry.database import prepare_database

CALLS_THIS_MACHINE: Final = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(b"k" * 32).decode(),
}
"""Variables under which it sends webhooks to receivers on this machine."""


@contextlib.contextmanager
def mlflow_server(folder: Path, **variables: str) -> Iterator[tuple[str, int]]:
    """Address and process id of one on SQLite in `folder`, which takes artifacts over HTTP.

    Started as `weighbridge up` does it: MLflow's own command is a process more, and makes its
    tables anew.
    """
    prepare_database(Settings(home=folder, cache=MACHINE_CACHE, tracking_uri=""))
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "weighbridge.registry.server",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    url = f"http://127.0.0.1:{port}"
    with Process(
        "mlflow server", command, log=folder / "log", cwd=folder, env={**os.environ, **variables}
    ) as process:
        process.wait_until(lambda: is_well(url), timeout=180)
        yield url, process.pid


def is_well(url: str) -> bool:
    """Whether `/health` under this address answers well."""
    try:
        return loopback.get(f"{url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False
