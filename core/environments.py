"""Locked environments: every engine and optimizer has one of its own, built from its lock on
demand.
"""

import hashlib
import itertools
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from weighbridge.core.bytecode import compile_modules
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import run, tells_of_full_disk
from weighbridge.core.progress import track
from weighbridge.core.uv_settings import find_links, uv_variables

TORCH_LOCKS = Path(__file__).parent
NEEDS_TORCH = "# needs: torch"
"""Line at the top of a lock that is installed together with the lock of PyTorch."""
AS_IT_IS = "# install: --no-deps"
"""Line at the top of a lock whose maker overruled what packages ask for."""
LONGEST_REASON = 480
"""Characters of uv's own words that fit into one line."""
_NO_SOLUTION = re.compile(r"No solution found when resolving|requirements are unsatisfiable")

logger = logging.getLogger(__name__)


class Unresolvable(Unavailable):
    """No versions of the wanted packages go together, or the index does not have them."""


@dataclass(frozen=True)
class Environment:
    """A finished virtual environment."""

    name: str
    path: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def bin(self, command: str) -> Path:
        return self.path / "bin" / command


def uv() -> str:
    """Return the path of the uv executable that came with our dependencies.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError) as exc:
        raise Unavailable("looking for uv", "it is not installed", "run: pip install uv") from exc


def torch_lock() -> Path:
    """Return the lock of PyTorch for this machine.

    It is the one of the CPU build where UV_FIND_LINKS or pip's find-links offers that.
    """
    offered = any(wheel for folder in find_links() for wheel in folder.glob("torch-*+cpu*.whl"))
    return TORCH_LOCKS / ("torch.cpu.lock" if offered else "torch.lock")


def locks_of(lock: Path) -> list[Path]:
    """Return a lock and, where it says so at its top, the lock of PyTorch."""
    return [lock, torch_lock()] if NEEDS_TORCH in _head(lock) else [lock]


def _head(lock: Path) -> list[str]:
    """Return the comments that stand before a lock's first package."""
    with lock.open() as stream:
        return [
            line.strip() for line in itertools.takewhile(lambda line: line.startswith("#"), stream)
        ]


def locate(lock: Path, cache: Path) -> tuple[Environment, bool]:
    """Return where the environment of a lock lives, and whether it is there and whole."""
    content = b"".join(path.read_bytes() for path in locks_of(lock))
    # The same lock gives other wheels under another Python.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(content + version.encode()).hexdigest()[:16]
    environment = Environment(_title(lock), cache / "environments" / f"{lock.stem}-{digest}")
    # The interpreter is a link to this machine's Python, which an upgrade of the system may remove.
    return environment, (environment.path / ".complete").exists() and environment.python.exists()


def _title(lock: Path) -> str:
    """Return what people call a lock's environment: an engine and an optimizer may share a name."""
    kind = {"engines": "engine ", "optimizers": "optimizer "}.get(lock.parent.name, "")
    return f"{kind}{lock.stem}"


def ensure(lock: Path, cache: Path) -> Environment:
    """Return the environment of a lock, built if it is not there: whole or not at all, by one
    process at a time.

    Raises: Unavailable: it cannot be built; the message names the package, or the disk, that stands
        in the way.
    """
    environment, whole = locate(lock, cache)
    if whole:
        return environment
    doing = f"building the environment of {environment.name}"
    try:
        environment.path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(environment.path, doing):
            # Asked again: whoever held the lock before may have built it.
            if not locate(lock, cache)[1]:
                _build(environment, locks_of(lock), doing)
    except OSError as exc:
        raise Unavailable(
            doing, str(exc), f"make room or give rights at {cache}, then run again"
        ) from exc
    return environment


@contextmanager
def one_at_a_time(path: Path, doing: str) -> Iterator[None]:
    """Let one process at a time into the block; one that has to wait logs it."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: waiting for another process that does it now", doing)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(environment: Environment, locks: list[Path], doing: str) -> None:
    shutil.rmtree(environment.path, ignore_errors=True)  # what an interrupted build left
    requirements = [option for lock in locks for option in ("-r", str(lock))]
    packages = sum(
        len(re.findall(r"^[\w.\[\]-]+==", lock.read_text(), re.MULTILINE)) for lock in locks
    )
    logger.info("%s, up to %d packages (first time only), in %s", doing, packages, environment.path)
    started = time.monotonic()
    try:
        with track(doing, None):
            run_uv(doing, "venv", "--python", sys.executable, str(environment.path))
            options = ["--require-hashes", "--python", str(environment.python)]
            options += ["--no-deps"] * any(AS_IT_IS in _head(lock) for lock in locks)
            run_uv(doing, "pip", "install", *options, *requirements)
            # Else every start compiles all that it imports, where bytecode cannot be written:
            # importing Prefect then takes twice the CPU.
            complaints = compile_modules(environment.path, environment.python, _others(environment))
            if tells_of_full_disk(complaints):
                raise Unavailable(doing, *_explain(complaints, 1))
    except BaseException:
        shutil.rmtree(environment.path, ignore_errors=True)
        raise
    (environment.path / ".complete").touch()
    logger.info("environment of %s built in %.0f s", environment.name, time.monotonic() - started)


def _others(environment: Environment) -> list[Path]:
    """Return the folders of the running environment, and of the finished ones beside this one."""
    finished = environment.path.parent.glob("*/.complete")
    return [Path(sys.prefix), *(mark.parent for mark in finished)]


def run_uv(doing: str, *arguments: str) -> str:
    """Run uv under the user's pip and uv configuration; returns what it printed.

    Raises:
        Unavailable: it failed; its own reason, and what to do about it.
        Unresolvable: it did its work, and there is no solution.
    """
    variables = {**os.environ, **uv_variables()}
    # uv has an option for this, and no variable.
    no_index = ["--no-index"] if arguments[0] == "pip" and variables.get("UV_NO_INDEX") else []
    command = [uv(), *arguments, *no_index, "--quiet", "--color", "never"]
    finished = run("uv", command, env=uv_variables())
    if finished.status != 0:
        error = Unresolvable if _NO_SOLUTION.search(finished.output) else Unavailable
        raise error(doing, *_explain(finished.output, finished.status))
    return finished.output


def _explain(output: str, status: int) -> tuple[str, str]:
    """Return what is wrong and what to do, out of uv's error report."""
    if tells_of_full_disk(output):
        remedy = (
            "make room on the disks of WEIGHBRIDGE_CACHE and of uv's own cache (`uv cache prune`), "
            "then run again"
        )
        return "the disk is full", remedy
    lines = (re.sub(r"^[\s×│├╰─▶]+", "", line) for line in output.strip().splitlines())
    message = re.sub(r"\s+", " ", " ".join(lines)).removeprefix("error: ")
    if reason := re.search(r"Because (.+?)(?: and you require .*?)?, we can conclude", message):
        message = reason[1]
    message = message.rstrip(". ") or f"uv ended with status {status}"
    if len(message) > LONGEST_REASON:
        message = f"{message[: LONGEST_REASON // 2]} … {message[-LONGEST_REASON // 2 :]}"
    if re.search(
        r"hash mismatch|there is no version|was not found in|no wheels|no matching",
        message,
        re.IGNORECASE,
    ):
        remedy = (
            "the package index in use does not carry what the lock names: "
            "check pip's or uv's index settings"
        )
        return message, remedy
    return message, "check the network and the package index, then run again"
