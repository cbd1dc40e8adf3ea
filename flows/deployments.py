"""The deployments in Prefect, as `prefect.yaml` describes them."""

import hashlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from weighbridge.core import processes
from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.paths import PACKAGE
from weighbridge.flows import prefect_settings

POOL = "weighbridge"
NAMES = ("release", "redeploy", "reconcile", "monitor", "compat")
DESCRIPTION = PACKAGE / "prefect.yaml"

logger = logging.getLogger(__name__)


def register(api: str, environment: Mapping[str, str], home: Path) -> bool:
    """Register every deployment of `prefect.yaml` in Prefect, where it or a flow has changed.

    Schedules that were changed in Prefect's UI stay as they are until then.

    Args:
        api: Address of Prefect's API.
        environment: Prefect's settings, as environment variables.
        home: Of the installation.

    Returns:
        False where Prefect knew them already.

    Raises:
        Unavailable: Prefect refuses.
    """
    # Prefect is asked as well: its database may be another than the one that was registered in.
    registered, digest = home / "run" / "deployments", _digest()
    if registered.exists() and registered.read_text() == digest and _known(api, home) >= set(NAMES):
        return False
    logger.info("registering the deployments of prefect.yaml")
    command = [
        sys.executable,
        "-m",
        "prefect",
        "--no-prompt",
        "deploy",
        "--prefect-file",
        str(DESCRIPTION),
        "--all",
    ]
    # Prefect notes the working directory, and a worker changes to it before it runs a flow. Where
    # the description lies, `tasks` or `core` would stand for a library of that name.
    variables = {**os.environ, **environment, **prefect_settings.client_secrets(home)}
    deploy = processes.run("prefect deploy", command, env=variables, cwd=home)
    if deploy.status != 0 or not _known(api, home) >= set(NAMES):
        raise Unavailable("registering the deployments", deploy.tail(12), f"see {DESCRIPTION}")
    replace_text(registered, digest)
    return True


def _known(api: str, home: Path) -> set[str]:
    """Return the names of the deployments that Prefect has."""
    try:
        response = httpx.post(
            f"{api}/deployments/filter",
            json={},
            auth=prefect_settings.login(home),
            timeout=30,
            trust_env=False,
        ).raise_for_status()
    except httpx.HTTPError as exc:
        raise Unavailable(
            "asking Prefect for its deployments", str(exc), "see: weighbridge status"
        ) from exc
    return {deployment["name"] for deployment in response.json()}


def _digest() -> str:
    """Return a digest of everything that a run form is made of."""
    digest = hashlib.sha256()
    folders = ("flows", "configs", "rollout", "tasks", "serving", "core")
    for path in (
        DESCRIPTION,
        *sorted(file for name in folders for file in (PACKAGE / name).rglob("*.py")),
    ):
        # By content, not by version: in a checkout the code changes under the same version.
        digest.update(path.read_bytes())
    return digest.hexdigest()
