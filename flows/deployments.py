"""The deployments in Prefect, as `prefect.yaml` describes them."""

import hashlib
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from weighbridge.core import loopback, processes
from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.paths import PACKAGE
from weighbridge.flows import deployment_copies, prefect_settings

POOL = "weighbridge"
NAMES = ("release", "redeploy", "reconcile", "monitor", "compat")
HOSTED = ("reconcile", "monitor")
"""Those whose runs the deployer carries out itself (deployer/hosted_runs.py)."""
DESCRIPTION = PACKAGE / "prefect.yaml"
_EARLIER_SCHEDULES = frozenset({("monitor", "every-5-minutes"), ("reconcile", "every-10-minutes")})
"""Deployment and slug."""

logger = logging.getLogger(__name__)


def register(api: str, environment: Mapping[str, str], home: Path, cache: Path) -> bool:
    """Register every deployment of `prefect.yaml` in Prefect, where it or a flow has changed.

    A Prefect that has none gets copies of those that this machine has registered before.

    Schedules that were changed in Prefect's UI stay as they are until then.

    Args:
        api: Address of Prefect's API.
        environment: Prefect's settings, as environment variables.
        home: Of the installation.
        cache: Of the machine.

    Returns:
        False where Prefect knew them already.

    Raises:
        Unavailable: Prefect refuses.
    """
    # Prefect is asked as well: its database may be another than the one that was registered in.
    registered, digest = home / "run" / "deployments", _digest()
    known = _known(api, home)
    if registered.exists() and registered.read_text() == digest and known >= set(NAMES):
        return False
    logger.info("registering the deployments of prefect.yaml")
    if known or not _copy(api, home, deployment_copies.kept(cache, digest, home)):
        deploy(environment, home)
        _remove_earlier_schedules(api, home)
        if not known:
            flows = {flow["id"]: flow["name"] for flow in _ask_list(f"{api}/flows/filter", home)}
            deployment_copies.keep(cache, digest, home, _deployments(api, home), flows)
    listed = _deployments(api, home)
    if not {deployment["name"] for deployment in listed} >= set(NAMES):
        raise Unavailable("registering the deployments", "Prefect lacks some", f"see {DESCRIPTION}")
    _let_the_deployer_run(api, home, listed)
    replace_text(registered, digest)
    return True


def _copy(api: str, home: Path, copies: Iterable[deployment_copies.Copy]) -> bool:
    """Make deployments of copies; False where there are none."""
    made = False
    for copy in copies:
        flow = _ask("POST", f"{api}/flows/", home, {"name": copy.flow}).json()["id"]
        _ask("POST", f"{api}/deployments/", home, {**copy.body, "flow_id": flow})
        made = True
    return made


def deploy(environment: Mapping[str, str], home: Path) -> None:
    """Have Prefect's own command register what `prefect.yaml` describes."""
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
    done = processes.run("prefect deploy", command, env=variables, cwd=home)
    if done.status != 0:
        raise Unavailable("registering the deployments", done.tail(12), f"see {DESCRIPTION}")


def _remove_earlier_schedules(api: str, home: Path) -> None:
    """Remove schedules that an earlier `prefect.yaml` had: Prefect adds the new ones to them."""
    for deployment in _deployments(api, home):
        for schedule in deployment["schedules"]:
            if (deployment["name"], schedule["slug"]) in _EARLIER_SCHEDULES:
                path = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
                _ask("DELETE", f"{api}/{path}", home)


def _let_the_deployer_run(api: str, home: Path, listed: Sequence[Mapping[str, Any]]) -> None:
    """Have workers ask the deployer for the runs that it carries out itself.

    Not by `prefect.yaml`, which knows no path of a Python.
    """
    for deployment in listed:
        if (name := deployment["name"]) in HOSTED:
            command = shlex.join([sys.executable, "-m", "weighbridge.deployer.run_request", name])
            url = f"{api}/deployments/{deployment['id']}"
            _ask("PATCH", url, home, {"job_variables": {"command": command}})


def _known(api: str, home: Path) -> set[str]:
    """Return the names of the deployments that Prefect has."""
    return {deployment["name"] for deployment in _deployments(api, home)}


def _deployments(api: str, home: Path) -> list[dict[str, Any]]:
    return _ask_list(f"{api}/deployments/filter", home)


def _ask_list(url: str, home: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _ask("POST", url, home, {}).json()
    return found


def _ask(
    method: str, url: str, home: Path, body: Mapping[str, Any] | None = None
) -> httpx.Response:
    """Return Prefect's answer. Raises Unavailable where it gives none, or refuses."""
    login = prefect_settings.login(home)
    try:
        return loopback.request(method, url, 30, json=body, auth=login).raise_for_status()
    except httpx.HTTPError as exc:
        raise Unavailable(
            "asking Prefect for its deployments", str(exc), "see: weighbridge status"
        ) from exc


def _digest() -> str:
    """Return a digest of everything that a run form is made of, and of the Python that runs it."""
    digest = hashlib.sha256(sys.executable.encode())
    folders = ("flows", "configs", "rollout", "tasks", "serving", "core")
    for path in (
        DESCRIPTION,
        *sorted(file for name in folders for file in (PACKAGE / name).rglob("*.py")),
    ):
        # By content, not by version: in a checkout the code changes under the same version.
        digest.update(path.read_bytes())
    return digest.hexdigest()
