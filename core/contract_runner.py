"""Run one contract in whatever interpreter this is started with, and print its result as a line of
JSON.

A contract is a plain function that does what we do with a package, and raises where that no longer
works::

    python -P -m weighbridge.core.contract_runner weighbridge.flows.upgrade_contracts:a_flow_runs
    python -P -m weighbridge.core.contract_runner weighbridge.core.contract_runner:imports serving
        core

It runs in environments that hold nothing of ours, so nothing but the standard library is imported
here.
"""

import ast
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from weighbridge.core.formatting import one_line
from weighbridge.core.paths import PACKAGE

OURS = frozenset({"weighbridge", "examples", "benchmarks"})
ELSEWHERE = ("serving/engines/*_server.py", "tasks/optimizers/*_scripts/*.py")
"""Programs that run in the environment of the plugin they are named after, not in ours."""
MARK = "weighbridge-contract: "


def imports(*places: str) -> None:
    """Raise ImportError where our code in `places` (folders, files) imports a name that is not
    there.

    Left out is what our code itself does without: imports for type checkers, and those under
    `except ImportError`.

    Raises:
        ImportError: names what is missing, all of it.
    """
    names = sorted({name for path in _files(places) for name in used(path.read_text())})
    problems = [_import_problem(module, name) for module, name in names]
    if missing := [problem for problem in problems if problem is not None]:
        raise ImportError("; ".join(missing))


def used(source: str) -> Iterator[tuple[str, str]]:
    """Yield module and name (empty: the module itself) of all that a source imports from others."""
    for node in _needed(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in imported:
            top = module.partition(".")[0]
            if top not in OURS and top not in sys.stdlib_module_names:
                yield module, name


def _needed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node of a tree that runs whatever happens."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Try) and any(_forgives(handler) for handler in child.handlers):
            continue
        yield from _needed(child)


def _forgives(handler: ast.ExceptHandler) -> bool:
    """Whether it catches that a module is missing."""
    return handler.type is None or any(f"'{name}'" in ast.dump(handler.type) for name in _FORGIVEN)


_FORGIVEN = ("ImportError", "ModuleNotFoundError")


def _files(places: tuple[str, ...]) -> list[Path]:
    roots = [PACKAGE / name for name in places]
    elsewhere = {path for pattern in ELSEWHERE for path in PACKAGE.glob(pattern)} - set(roots)
    files = [
        file for path in roots for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    return [path for path in files if path not in elsewhere]


def _import_problem(module: str, name: str) -> str | None:
    """Return what is wrong with importing a name; None where nothing is."""
    try:
        loaded = importlib.import_module(module)
        if name and not hasattr(loaded, name):
            # It may be a submodule, which a package has as an attribute only once somebody imported
            # it.
            importlib.import_module(f"{module}.{name}")
    # Whatever a package raises while it is imported is what has to be told.
    except Exception as exc:
        return f"{module}{'.' if name else ''}{name}: {last_line(exc)}"
    return None


def last_line(exc: BaseException) -> str:
    """Return type and words of an error in one line, as the end of a traceback has them."""
    lines = "".join(traceback.format_exception_only(exc)).strip().splitlines()
    return one_line(lines[-1] if len(lines) < 3 else " ".join(lines))


def main(call: str, *arguments: str) -> int:
    """Run `module:function`; the last line on standard output is the result."""
    module, _, function = call.partition(":")
    started, error = time.monotonic(), None
    try:
        getattr(importlib.import_module(module), function)(*arguments)
    except Exception as exc:  # a contract breaks in whatever way the package chooses
        traceback.print_exc()
        error = last_line(exc)
    seconds = round(time.monotonic() - started, 2)
    result = {"holds": error is None, "error": error or "", "seconds": seconds}
    # A line of its own: what the package printed before may end without a line break. The status is
    # 0 either way; another one says that there was no result.
    print(f"\n{MARK}{json.dumps(result)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
