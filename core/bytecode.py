"""Compile the modules of an environment, and none that another environment has compiled already.

An interpreter imports a module many times faster where its compiled form lies beside it. What is
hardly ever imported is left out: it would be half of all that there is to compile.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path

from weighbridge.core.machine import cores
from weighbridge.core.processes import run

OF_TESTS = frozenset({"test", "testing", "tests"})
"""Folders in which packages carry their own tests, and what helps to write them."""
ARCHITECTURES = frozenset({"transformers/models", "vllm/model_executor/models"})
"""Folders with a module for each of hundreds of architectures, of which a process imports one."""


def compile_modules(environment: Path, python: Path, others: Sequence[Path]) -> str:
    """Put the compiled form of each module beside it; return what the compiler complained of.

    It complains of files that are not of this Python: packages carry templates, too.

    Args:
        environment: Folder of the environment, freshly installed.
        python: Its interpreter.
        others: Folders of other environments. Where the installer has linked the same file into
            both, the compiled form is linked as well: it takes neither time nor disk.
    """
    uncompiled = [path for path in _modules(environment) if not _linked(path, environment, others)]
    workers = cores()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(workers) as pool:
        lists = [Path(scratch) / str(number) for number in range(workers)]
        for number, path in enumerate(lists):
            path.write_text("".join(f"{module}\n" for module in uncompiled[number::workers]))
        command: list[str | Path] = [python, "-I", "-m", "compileall", "-q", "-i"]
        finished = pool.map(lambda path: run("compileall", [*command, path]), lists)
        return "".join(one.output for one in finished)


def _modules(environment: Path) -> Iterator[Path]:
    """Yield the modules of the packages that are installed, but those that few would import."""
    for packages in environment.glob("lib/python3.*/site-packages"):
        left_out = {str(packages / folder) for folder in ARCHITECTURES}
        for folder, below, names in os.walk(packages):
            below[:] = [
                name
                for name in below
                if name not in OF_TESTS and f"{folder}/{name}" not in left_out
            ]
            yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _linked(module: Path, environment: Path, others: Sequence[Path]) -> bool:
    """Whether the compiled form could be linked from another environment."""
    compiled = Path(cache_from_source(str(module)))
    for other in others:
        theirs = other / module.relative_to(environment)
        # It has not been compiled there, is not there, or the file system takes no links.
        with suppress(OSError):
            if theirs.samefile(module):
                compiled.parent.mkdir(exist_ok=True)
                compiled.hardlink_to(cache_from_source(str(theirs)))
                return True
    return False
