"""The deployments in Prefect: what `prefect.yaml` says, registered when it or the flows changed."""

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
from weighbridge.core.package import PACKAGE

POOL = "weighbridge"
NAMES = ("release", "redeploy", "reconcile", "monitor", "compat")
DESCRIPTION = PACKAGE / "prefect.yaml"

logger = logging.getLogger("weighbridge.platform")


def register(api: str, environment: Mapping[str, str], home: Path) -> bool:
    """Have Prefect know every deployment of `prefect.yaml`; False where it knew them already.

    Schedules that were changed in Prefect's UI stay as they are until `prefect.yaml` or a flow
    changes.

    Raises:
        Unavailable: Prefect refuses.
    """
    mark, digest = home / "run" / "deployments", _digest()
    if mark.exists() and mark.read_text() == digest and _known(api) >= set(NAMES):
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
    # Not where the description lies: a worker changes to this folder, where no name may shadow a
    # library.
    done = processes.run("prefect deploy", command, env={**os.environ, **environment}, cwd=home)
    if done.status != 0 or not _known(api) >= set(NAMES):
        raise Unavailable("registering the deployments", done.tail(12), f"see {DESCRIPTION}")
    replace_text(mark, digest)
    return True


def _known(api: str) -> set[str]:
    try:
        found = httpx.post(
            f"{api}/deployments/filter", json={}, timeout=30, trust_env=False
        ).raise_for_status()
    except httpx.HTTPError as exc:
        raise Unavailable(
            "asking Prefect for its deployments", str(exc), "see: weighbridge status"
        ) from exc
    return {deployment["name"] for deployment in found.json()}


def _digest() -> str:
    """Of everything that a run form is made of."""
    state = hashlib.sha256()
    folders = ("flows", "configs", "rollout", "tasks", "serving", "core")
    for path in (
        DESCRIPTION,
        *sorted(file for name in folders for file in (PACKAGE / name).rglob("*.py")),
    ):
        state.update(path.read_bytes())
    return state.hexdigest()
