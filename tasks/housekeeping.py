"""Which environments are needed, and the removal of all others."""

from pathlib import Path

from weighbridge.core import environments, plugins
from weighbridge.core.package import PACKAGE
from weighbridge.core.pruning import Pruned, prune
from weighbridge.core.settings import Settings

HOMES = ("serving", "tasks", "benchmarks", "examples", "tests")
"""Folders of ours with locks; the last three are there in a checkout alone."""


def prune_environments(settings: Settings) -> list[Pruned]:
    """Remove environments that no lock of today names and no deployed Bento runs in."""
    named = {environments.locate(lock, settings.cache)[0].path for lock in locks()}
    return prune(settings.cache, named, deployed(settings))


def locks() -> set[Path]:
    """Every lock that an environment may be built from today; those of a checkout's tests and benchmarks too."""
    found = {lock for name in plugins.names("engine") for lock in plugins.load("engine", name).locks.values()}
    found |= {lock for name in plugins.names("optimizer") if (lock := plugins.load("optimizer", name).lock)}
    return found | {lock for folder in HOMES for lock in (PACKAGE / folder).rglob("*.lock")}


def deployed(settings: Settings) -> set[str]:
    """Names of the environments that what this installation deployed runs in, or would go back to."""
    places = [settings.home / "targets", settings.home / "run"]
    texts = [path.read_text(errors="replace") for place in places for path in place.rglob("*") if _is_note(path)]
    known = [path.name for path in (settings.cache / "environments").glob("*") if path.is_dir()]
    return {name for name in known if any(name in text for text in texts)}


def _is_note(path: Path) -> bool:
    return path.is_file() and path.suffix in (".json", ".jsonl", ".conf", ".ini")
