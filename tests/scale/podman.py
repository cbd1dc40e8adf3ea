"""Docker's API by podman, for a worker of a Docker pool and for the command that builds images."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from weighbridge.core.processes import Process
from weighbridge.services.images.image import BASE

CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""With it podman runs where RLIMIT_NOFILE cannot be raised and cgroups are of the first version."""


def missing() -> str:
    """Why no container can be run here; empty where one can."""
    if not all(map(shutil.which, ("podman", "runc"))):
        return "podman and runc are not installed"
    if os.geteuid() != 0:
        return "podman without root takes settings of the system"
    if run("image", "exists", BASE).returncode:
        return f"there is no image {BASE} here: podman pull, or podman import, brings it"
    return ""


def variables(folder: Path) -> dict[str, str]:
    """Return podman's own settings, written into a folder."""
    path = folder / "containers.conf"
    path.write_text(CONFIGURATION)
    return {"CONTAINERS_CONF": str(path)}


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["podman", *arguments], capture_output=True, text=True, env={**os.environ, **variables}
    )


@contextmanager
def socket(folder: Path, settings: Mapping[str, str]) -> Iterator[str]:
    """Give the address of podman's API for a block."""
    address = f"unix://{folder / 'podman.sock'}"
    command = ["podman", "system", "service", "--time=0", address]
    with Process("podman", command, log=folder / "podman.log", cwd=folder, env=settings) as process:
        process.wait_until((folder / "podman.sock").exists, 60)
        yield address


def state(name: str, **settings: str) -> dict[str, object]:
    """Return how a container is."""
    [described] = json.loads(run("inspect", name, **settings).stdout)
    return dict(described["State"])
