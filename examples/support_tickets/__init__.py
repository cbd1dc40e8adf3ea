"""A tiny language model and a task for it: support tickets, made from nothing in about two minutes
on two cores.

    from examples.support_tickets import ensure
    folder = ensure(Path("some/cache"))   # folder/base is the model, folder/data the three splits

Importing this package is cheap, and `ensure` makes the model in a process of its own: the caller's
torch, its threads, random state and memory are left alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from .manifest import Damaged, verify

SEED: Final = 0
ERROR: Final = "error: "
"""What the one line begins with by which the command says why it failed."""
logger: Final = logging.getLogger("weighbridge.examples.support_tickets")


class BuildFailed(RuntimeError):
    """The model could not be made; the message is the reason, in one line."""


def ensure(cache: Path, seed: int = SEED) -> Path:
    """Return the made folder in `cache`, making it first if it is missing or no longer what was
    made.

    Several processes may ask at the same time: one works, the others wait for it. Raises
    BuildFailed.
    """
    from filelock import FileLock

    cache = cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    folder = folder_in(cache, seed)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            try:
                verify(folder)
            except Damaged as error:
                logger.warning("%s; making it again", error)
                _discard(folder)
            else:
                return folder
        _make(folder, seed)
    return folder


def folder_in(cache: Path, seed: int = SEED) -> Path:
    """Return where `ensure` keeps the folder, made or not: its name changes with whatever decides
    its content.

    That is this package's source, the seed, torch and transformers.
    """
    parts = [
        path.name.encode() + path.read_bytes()
        for path in sorted(Path(__file__).parent.glob("*.py"))
    ]
    parts += [f"{name} {version(name)}".encode() for name in ("torch", "transformers")]
    parts.append(f"seed {seed}".encode())
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return cache / f"support-tickets-{digest[:12]}"


def _discard(folder: Path) -> None:
    # Renamed first, so that a process killed in between leaves no half-deleted folder under the
    # good name.
    rest = folder.with_name(f"{folder.name}.damaged-{os.getpid()}")
    folder.rename(rest)
    shutil.rmtree(rest)


def _make(folder: Path, seed: int) -> None:
    """Run `python -m examples.support_tickets`, passing its lines on to the log."""
    command = [sys.executable, "-m", __name__, str(folder), "--seed", str(seed)]
    root = Path(__file__).parents[2]
    last = ""
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None  # for the type checker: it was asked for above
        for line in map(str.rstrip, process.stderr):
            last = line
            if not line.startswith(ERROR):
                logger.info("%s", line)
    if process.returncode:
        reason = (
            last.removeprefix(ERROR)
            if last.startswith(ERROR)
            else f"making {folder} broke off: {last}"
        )
        raise BuildFailed(reason)
