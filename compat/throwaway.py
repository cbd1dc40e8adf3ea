"""An environment for one subject: moved from version to version, removed at the end."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import weighbridge
from weighbridge.compat.locked_environments import CONTROL, Contract, LockedEnvironment
from weighbridge.compat.report import ContractResult
from weighbridge.core.contract_runner import MARK
from weighbridge.core.disk import require_room
from weighbridge.core.environments import Environment, locate, one_at_a_time, run_uv
from weighbridge.core.formatting import one_line
from weighbridge.core.processes import Process

NEEDED = 4 << 30
"""Bytes of disk: links where uv's cache is on the same one, but nobody can know that before."""
UNSEEN = ("PREFECT_", "MLFLOW_", "WEIGHBRIDGE_", "BENTOML_", "PYTHON")
"""Beginnings of variables that a user, or the platform, may have set and no contract shall see."""


@dataclass(frozen=True)
class ThrowAwayEnvironment:
    """One environment and the folders its contracts work in."""

    locked: LockedEnvironment
    folder: Path
    models: Path
    """What its engine serves, kept from trial to trial."""
    environment: Environment
    cache: Path
    """The user's cache, with this environment in the place of the subject's own."""

    def move(self, versions: Mapping[str, str]) -> None:
        """Have these versions installed and no others.

        Raises:
            Unavailable: one of them cannot be installed.
        """
        doing = f"installing {len(versions)} packages for {self.locked.name}"
        if not self.environment.python.exists():
            run_uv(doing, "venv", "--python", sys.executable, str(self.environment.path))
        pinned = self.folder / "versions.txt"
        pinned.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
        # Not `install`, which would leave behind what an earlier set of versions needed.
        run_uv(doing, "pip", "sync", "--python", str(self.environment.python), str(pinned))
        # The mark by which `locate`, in a contract run by our own Python, takes it for whole.
        (self.environment.path / ".complete").touch()

    def run(self, contract: Contract, timeout: float) -> ContractResult:
        """Run one contract. Whatever it does, this says how it ended."""
        python = self.environment.python if contract.inside else Path(sys.executable)
        return run_contract(contract, python, self.models, self.cache, timeout)


def run_contract(
    contract: Contract, python: Path, models: Path, cache: Path, timeout: float
) -> ContractResult:
    """Run a contract in a process of its own; what it writes is removed, but for `models`."""
    # A short name: sockets live in it.
    with tempfile.TemporaryDirectory(prefix="wb-") as scratch:
        env = variables(Path(scratch), cache)
        # Where a program is looked for by name, it is the environment's own.
        env["PATH"] = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
        env["WEIGHBRIDGE_COMPAT_MODELS"] = str(models)
        # Unset by `env`: a process can only be given more variables than ours, not fewer.
        unset = [
            argument
            for name in os.environ
            if name.startswith(UNSEEN) and name not in env
            for argument in ("-u", name)
        ]
        command: list[str | Path] = [
            "env",
            *unset,
            python,
            # The working folder is not searched for modules.
            "-P",
            "-m",
            "weighbridge.core.contract_runner",
            contract.call,
            *contract.arguments,
        ]
        (work := Path(scratch) / "work").mkdir()
        with Process(
            contract.name, command, log=Path(scratch) / "log", cwd=work, env=env
        ) as process:
            return _result(contract, process, timeout)


def variables(scratch: Path, cache: Path) -> dict[str, str]:
    """Return the variables under which a contract sees nothing of the user's and leaves nothing
    behind.
    """
    return {
        "PYTHONPATH": str(_alone(scratch)),
        "WEIGHBRIDGE_HOME": str(scratch / "home"),
        "WEIGHBRIDGE_CACHE": str(cache),
        "PREFECT_HOME": str(scratch / "home" / "prefect"),
        "BENTOML_HOME": str(scratch / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(scratch),
    }


def _alone(scratch: Path) -> Path:
    """Return a folder with nothing but Weighbridge in it.

    Beside an installed Weighbridge lie the libraries that are on trial.
    """
    (folder := scratch / "weighbridge-alone").mkdir(exist_ok=True)
    if not (link := folder / "weighbridge").exists():
        link.symlink_to(Path(weighbridge.__file__).parent)
    return folder


def _result(contract: Contract, process: Process, timeout: float) -> ContractResult:
    started = time.monotonic()
    while process.alive():
        if time.monotonic() - started > timeout:
            words = _last_words(process.tail(3))
            wrong = f"it took longer than {timeout:.0f} s; its last words: {words}"
            return ContractResult(contract=contract.name, holds=False, error=wrong, seconds=timeout)
        time.sleep(0.05)
    result_lines = [
        line
        for line in process.log.read_text(errors="replace").splitlines()
        if line.startswith(MARK)
    ]
    # It was killed, or ended the interpreter itself.
    if not result_lines:
        wrong = f"it ended without a result; its last words: {_last_words(process.tail(3))}"
        return ContractResult(
            contract=contract.name, holds=False, error=wrong, seconds=time.monotonic() - started
        )
    return ContractResult(contract=contract.name, **json.loads(result_lines[-1].removeprefix(MARK)))


def _last_words(text: str) -> str:
    return one_line(text)[-300:] or "(nothing)"


@contextmanager
def folder_of_a_check(cache: Path) -> Iterator[Path]:
    """Give a folder for one whole check, on the disk of the cache so that files can be linked.

    What a killed check left is removed first.

    Another check that is under way is waited for.

    Raises:
        Unavailable: the disk is too full.
    """
    parent, doing = cache / "compat", "checking what newer releases would break"
    parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(parent, doing):
        # Nobody works in them: we hold the lock of the folder.
        for leftover in parent.iterdir():
            shutil.rmtree(leftover, ignore_errors=True)
        # After the removal: what was left may be what fills the disk.
        require_room(NEEDED, "an environment", parent, doing)
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def throw_away(
    locked: LockedEnvironment, check_folder: Path, cache: Path
) -> Iterator[ThrowAwayEnvironment]:
    """Give an empty environment for a subject, removed when the block ends."""
    folder = Path(tempfile.mkdtemp(dir=check_folder, prefix=f"{locked.name}-"))
    try:
        view = cache_without(cache, folder / "cache", locked.lock)
        own_environment = locate(locked.lock, view)[0]
        environment = (
            Environment(locked.name, folder / "environment")
            if locked.name == CONTROL
            else own_environment
        )
        yield ThrowAwayEnvironment(locked, folder, check_folder / "models", environment, view)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cache_without(cache: Path, view: Path, without: Path | None = None) -> Path:
    """Make a cache that holds what `cache` holds, by links, without the environment of one lock.

    What is written beside the links is written here alone.
    """
    (view / "environments").mkdir(parents=True)
    left_out = locate(without, cache)[0].path.name if without else ""
    for path in cache.iterdir():
        # `compat` holds this very view. Locks are not shared: a contract shall not wait for the
        # user's own builds.
        if path.name not in ("environments", "compat") and path.suffix != ".lock":
            (view / path.name).symlink_to(path)
    for path in (cache / "environments").glob("*"):
        if path.name != left_out and path.suffix != ".lock":
            (view / "environments" / path.name).symlink_to(path)
    return view
