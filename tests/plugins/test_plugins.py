"""The public interface: all that it names is there, light to import, and enough for a plugin."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from weighbridge import plugins
from weighbridge.plugins import shim

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "numpy_engine" / "weighbridge_numpy"


def imported_from(path: Path, package: str = "") -> Iterator[tuple[str, str]]:
    """Module and name of every `from package… import …` in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith(package))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(package):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("name", plugins.__all__)
def test_every_public_name_is_there_and_is_what_a_type_checker_sees(name: str) -> None:
    seen = {name: module for module, name in imported_from(Path(plugins.__file__), "weighbridge")}
    assert getattr(plugins, name) is getattr(sys.modules[seen[name]], name)


def test_what_is_public_stands_in_one_list() -> None:
    names = {name for _, name in imported_from(Path(plugins.__file__), "weighbridge")}
    assert sorted(names) == sorted(plugins.__all__) == sorted(dir(plugins))
    assert all(hasattr(shim, name) for name in shim.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lock_of'"):
        plugins.lock_of  # noqa: B018


def test_nothing_is_imported_before_a_name_is_asked_for() -> None:
    """An engine's own environment holds neither pydantic nor what stages need."""
    program = "import sys, weighbridge.plugins; print([*sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = ast.literal_eval(done.stdout)
    ours = {name for name in loaded if name.startswith("weighbridge")}
    assert ours == {"weighbridge", "weighbridge.plugins"}
    assert "pydantic" not in loaded


def test_the_example_imports_nothing_of_ours_but_the_public_interface() -> None:
    modules = {
        module for path in EXAMPLE.glob("*.py") for module, _ in imported_from(path, "weighbridge")
    }
    assert modules == {"weighbridge.plugins", "weighbridge.plugins.shim"}
