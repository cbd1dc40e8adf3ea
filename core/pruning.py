"""What locked environments take on the disk, which are needed, and the removal of all others."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from weighbridge.core import plugins
from weighbridge.core.environments import locate
from weighbridge.core.paths import CHECKOUT, PACKAGE
from weighbridge.core.settings import Settings

WITH_LOCKS = ("serving", "tasks")
"""Folders of the package that hold locks."""
WITH_LOCKS_IN_CHECKOUT = ("benchmarks", "examples", "tests")
"""Folders with locks that are not installed."""


@dataclass(frozen=True)
class Pruned:
    """What became of one environment that no lock names."""

    name: str
    bytes: int
    kept: str | None = None
    """Why it stays; None where it is gone, or would be."""


def size_on_disk(folder: Path) -> int:
    """Return the bytes that a folder takes; files that are linked several times within it count
    once.
    """
    return sum({inode: size for inode, size, _ in files_in([folder])}.values())


def files_in(paths: Iterable[Path]) -> Iterator[tuple[int, int, int]]:
    """Yield inode, bytes on the disk and number of links of every file among these paths, or in one
    of them that is a folder; each path once.
    """
    met: set[str] = set()
    for name, status in (file for path in paths for file in _files_below(path)):
        if name not in met:
            met.add(name)
            # Blocks of 512 bytes, whatever the blocks of the file system are.
            yield status.st_ino, status.st_blocks * 512, status.st_nlink


def _files_below(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of each file; those that go meanwhile are left out."""
    folders = [str(path)]
    if not path.is_dir():
        folders.clear()
        with contextlib.suppress(OSError):
            yield str(path), path.lstat()
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                with contextlib.suppress(OSError):
                    yield entry.path, entry.stat(follow_symlinks=False)


def prune(
    cache: Path, named: Collection[Path], served: Collection[str] = (), *, dry: bool = False
) -> list[Pruned]:
    """Remove the environments under `cache` that are not among `named`; `dry`, only say so.

    Those whose folder's name is in `served`, that a process runs in, or that are being built, stay.
    """
    environments = (path for path in (cache / "environments").glob("*") if path.is_dir())
    unnamed = [path for path in sorted(environments) if path not in named]
    reasons: dict[Path, str] = mapped(unnamed) | {
        path: "a Bento that is deployed runs in it" for path in unnamed if path.name in served
    }
    return [
        Pruned(path.name, size_on_disk(path), reasons.get(path))
        if dry
        else _remove(path, reasons.get(path))
        for path in unnamed
    ]


def mapped(folders: Collection[Path]) -> dict[Path, str]:
    """Return the folders of which some process of this machine uses files, and the reason to keep
    them.

    A process uses files that are in its memory or on its command line.
    """
    reasons: dict[Path, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        text = b""
        for name in ("maps", "cmdline"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                text += (process / name).read_bytes()
        reasons |= {
            folder: f"process {process.name} runs in it"
            for folder in folders
            # With the slash: one name may begin another.
            if f"{folder}/".encode() in text
        }
    return reasons


def _remove(folder: Path, reason: str | None) -> Pruned:
    size = size_on_disk(folder)
    if reason is not None:
        return Pruned(folder.name, size, reason)
    try:
        # The lock under which `ensure` builds.
        with FileLock(f"{folder}.lock", timeout=0):
            # Renamed first, so that a removal that breaks off leaves nothing that looks whole.
            doomed = folder.with_name(f".{folder.name}.removed")
            shutil.rmtree(doomed, ignore_errors=True)
            folder.rename(doomed)
            shutil.rmtree(doomed)
    except Timeout:
        return Pruned(folder.name, size, "it is being built")
    except OSError as exc:
        return Pruned(folder.name, size, str(exc))
    return Pruned(folder.name, size)


def prune_environments(settings: Settings, *, dry: bool = False) -> list[Pruned]:
    """Remove environments that no lock of today names and no deployed Bento runs in; `dry`, only
    say so.
    """
    named = {locate(lock, settings.cache)[0].path for lock in locks()}
    return prune(settings.cache, named, deployed(settings), dry=dry)


def locks() -> set[Path]:
    """Return every lock that an environment may be built from today, those of a checkout's tests
    too.
    """
    of_engines = {
        lock
        for name in plugins.names("engine")
        for lock in plugins.load("engine", name).locks.values()
    }
    of_optimizers = {
        lock
        for name in plugins.names("optimizer")
        if (lock := plugins.load("optimizer", name).lock)
    }
    folders = [PACKAGE / name for name in WITH_LOCKS]
    if CHECKOUT is not None:
        folders += [CHECKOUT / name for name in WITH_LOCKS_IN_CHECKOUT]
    ours = {lock for folder in folders for lock in folder.rglob("*.lock")}
    return of_engines | of_optimizers | ours


def deployed(settings: Settings) -> set[str]:
    """Return the names of environments that deployed versions run in, or would after a rollback."""
    folders = [settings.home / "targets", settings.home / "run"]
    # Searched as text: what names an environment there is JSON, haproxy's and supervisord's.
    texts = [
        path.read_text(errors="replace")
        for folder in folders
        for path in folder.rglob("*")
        if _is_record(path)
    ]
    environment_names = [
        path.name for path in (settings.cache / "environments").glob("*") if path.is_dir()
    ]
    return {name for name in environment_names if any(name in text for text in texts)}


def _is_record(path: Path) -> bool:
    return path.is_file() and path.suffix in (".json", ".jsonl", ".conf", ".ini")
