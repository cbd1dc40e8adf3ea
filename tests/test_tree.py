"""Invariants of the tree: what lies on disk is what is registered, declared and documented."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import LONG_FILES
from weighbridge.core.plugins import BUILT_IN, Point, load
from weighbridge.tasks.metrics.base import Metric
from weighbridge.tasks.optimizers.base import Optimizer
from weighbridge.tasks.sources.base import Source

ROOT = Path(__file__).resolve().parent.parent
FOLDERS: dict[Point, str] = {
    "source": "tasks/sources",
    "optimizer": "tasks/optimizers",
    "engine": "serving/engines",
    "metric": "tasks/metrics",
    "target": "serving/targets",
}


@pytest.mark.parametrize(
    ("point", "name"), [(point, name) for point in BUILT_IN for name in BUILT_IN[point]]
)
def test_every_plugin_in_the_table_loads_and_its_args_bear_its_name(
    point: Point, name: str
) -> None:
    plugin = load(point, name)
    assert plugin.Args.model_fields["kind"].default == name


@pytest.mark.parametrize(
    ("protocol", "point"), [(Source, "source"), (Optimizer, "optimizer"), (Metric, "metric")]
)
def test_every_plugin_has_all_that_its_protocol_names(protocol: type, point: Point) -> None:
    methods = {name for name in vars(protocol) if not name.startswith("_")}
    for name in BUILT_IN[point]:
        plugin = load(point, name)
        missing = {*protocol.__annotations__, *methods} - set(dir(plugin))
        assert not missing, plugin


TABLES = {"on_path", "shipped"}
"""Files of several plugins, which are little more than data."""


def files_of(point: Point) -> dict[str, str]:
    """The file of every built-in plugin, or the package where it is one, by the plugin's name."""
    folder = "weighbridge." + FOLDERS[point].replace("/", ".")
    return {
        name: path.removeprefix(f"{folder}.").partition(":")[0].partition(".")[0]
        for name, path in BUILT_IN[point].items()
    }


def modules_of(point: Point) -> dict[str, str]:
    """What is in every module, and in every package, of a folder of plugins, by its name."""
    folder = ROOT / FOLDERS[point]
    modules = {path.stem: path.read_text() for path in folder.glob("*.py")}
    for package in folder.glob("*/__init__.py"):
        texts = [path.read_text() for path in package.parent.glob("*.py")]
        modules[package.parent.name] = "\n".join(texts)
    return modules


@pytest.mark.parametrize("point", FOLDERS)
def test_every_plugin_in_the_table_has_a_file_of_its_own_name_or_is_a_row(point: Point) -> None:
    for name, file in files_of(point).items():
        assert file in modules_of(point)
        assert file == name or file in TABLES


@pytest.mark.parametrize("point", ["engine", "target", "source"])
def test_every_file_of_a_plugin_folder_is_in_the_table(point: Point) -> None:
    helpers = {"__init__", "base"}
    defined = {
        name
        for name, text in modules_of(point).items()
        if name not in helpers and re.search(r"^class .*Args\(", text, re.MULTILINE)
    }
    assert defined == set(files_of(point).values())


def test_every_package_is_reached_through_one_link_and_every_link_is_one() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {
        "benchmarks",
        "examples",
        "tests",
    }
    links = {path.name for path in (ROOT / "src/weighbridge").iterdir()} - {
        "__init__.py",
        "py.typed",
        "__pycache__",
    }
    assert links == packages
    for name in links:
        link = ROOT / "src/weighbridge" / name
        remedy = "run: git config core.symlinks true && git checkout -- src"
        assert link.is_symlink(), f"{link} is no link, though it is one in git; {remedy}"
        assert link.readlink() == Path("../..") / name


def test_every_environment_is_locked_with_hashes() -> None:
    for spec in ROOT.rglob("*.in"):
        if {".venv", "build"} & set(spec.relative_to(ROOT).parts):
            continue
        lock = spec.with_suffix(".lock").read_text()
        pinned = re.findall(r"^[a-zA-Z0-9][^ ;\\\n]*", lock, re.MULTILINE)
        assert pinned, spec
        assert all("==" in requirement for requirement in pinned), spec
        assert lock.count("--hash=sha256:") >= len(pinned), spec


def test_control_lock_holds_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # A deployer from the control plane's image serves in clusters as well.
    wanted = [*project["dependencies"], *project["optional-dependencies"]["kubernetes"]]
    direct = {re.split(r"[<>=\[;]", requirement)[0] for requirement in wanted}
    locks = (ROOT / "locks/control.lock").read_text() + (ROOT / "core/torch.lock").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==", locks, re.MULTILINE))
    assert direct <= locked


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        (
            "weighbridge.cli.main",
            ("pydantic", "yaml", "rich", "prefect", "mlflow", "torch", "transformers", "bentoml"),
        ),
        (
            "weighbridge.configs.load",
            (
                "prefect",
                "mlflow",
                "torch",
                "transformers",
                "bentoml",
                "datasets",
                "boto3",
                "matplotlib",
            ),
        ),
        (
            "weighbridge.flows.plan",
            (
                "prefect",
                "mlflow",
                "torch",
                "transformers",
                "bentoml",
                "datasets",
                "boto3",
                "numpy",
                "matplotlib",
                "jsonschema",
            ),
        ),
    ],
)
def test_what_must_start_fast_imports_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_files_that_are_handed_out_early_are_there() -> None:
    assert [name for name in LONG_FILES if not (ROOT / "tests" / name).is_file()] == []
