"""The worker of a Bento as a copy of its launcher, with what this Python has imported of it.

Bentos have an environment of their own. The copy goes on in that, where it has the same Python, and
BentoML in the same version; whatever is not there in the version that was imported is forgotten.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from tests.warm import exec_with_imports

popen: Any = subprocess.Popen
_distributions: dict[str, set[str]] = {}
"""Of our environment: which ones a package is of, each by name and version."""
_path_hooks: list[Any] = []
_find_distributions: Any = PathFinder.__dict__["find_distributions"]


def note_what_is_installed() -> None:
    """Read what `move_into` needs; call it before anything is imported that changes imports."""
    _path_hooks[:] = sys.path_hooks
    for folder in packages(Path(sys.prefix)).glob("*.dist-info"):
        for line in (folder / "RECORD").read_text().splitlines():
            package = line.partition(",")[0].partition("/")[0].partition(".")[0]
            _distributions.setdefault(package, set()).add(folder.name)


def start_worker(command: Sequence[str], **options: Any) -> Any:
    """Stand for `subprocess.Popen` in the launcher."""
    environment = Path(command[0]).parents[1]
    if not is_like_ours(environment):
        return popen(command, **options)
    return Worker(environment, command, options)


class Worker:
    """What the launcher knows of a process that it started."""

    def __init__(
        self, environment: Path, command: Sequence[str], options: Mapping[str, Any]
    ) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            options["preexec_fn"]()
            for number in set(range(3, 256)) - {*options["pass_fds"]}:
                with contextlib.suppress(OSError):
                    os.close(number)
            os.chdir(options["cwd"])
            move_into(environment)
            exec_with_imports.become(command, options["env"])

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def is_like_ours(environment: Path) -> bool:
    """Whether an environment has the same Python, and BentoML in the same version."""
    python = environment / "bin" / "python"
    same_python = python.resolve() == Path(sys.executable).resolve()
    return same_python and _distributions["bentoml"] <= installed(environment)


def move_into(environment: Path) -> None:
    """Be a Python of this environment: with nothing that is not there in this version."""
    theirs = installed(environment)
    exec_with_imports.reset_logging()
    exec_with_imports.forget(lambda name: is_foreign(name, theirs))
    # What is foreign may take part in imports: `beartype` and `importlib_metadata` do.
    sys.path_hooks[:] = _path_hooks
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [one for one in sys.meta_path if not is_foreign(one.__module__, theirs)]
    finder: Any = PathFinder
    finder.find_distributions = _find_distributions
    sys.executable = str(environment / "bin" / "python")
    sys.prefix = sys.exec_prefix = str(environment)
    library = [folder for folder in exec_with_imports.path if folder.startswith(sys.base_prefix)]
    further = [folder for folder in os.environ.get("PYTHONPATH", "").split(":") if folder]
    exec_with_imports.path[:] = [*further, *library, str(packages(environment))]


def installed(environment: Path) -> set[str]:
    """Names and versions of what is installed there, as folders tell them."""
    return {folder.name for folder in packages(environment).glob("*.dist-info")}


def packages(environment: Path) -> Path:
    return environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"


def is_foreign(module: str, theirs: set[str]) -> bool:
    """Whether a module is neither Python's own nor of one of these distributions."""
    package = module.partition(".")[0]
    is_ours = package in ("weighbridge", "tests")
    return is_ours or (package in _distributions and not _distributions[package] & theirs)
