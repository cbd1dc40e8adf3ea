"""Bentos: what is in them, and that they are built whole or not at all."""

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serving import bentos
from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import Environment, uv
from weighbridge.core.errors import Unavailable
from weighbridge.core.paths import PACKAGE
from weighbridge.core.plugins import BUILT_IN
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento, bento_process


@pytest.fixture
def exported(built: bento.Built, contents: bento.Contents, shared: Workspace) -> Artifact:
    return bento.export(built, contents.model, shared.store, {})


@pytest.fixture
def environment(exported: Artifact, shared: Workspace) -> Environment:
    return bento_process.environment_of(exported.path, shared.settings.cache)


def test_carries_serving_core_and_the_public_interface_and_nothing_else_of_ours(
    built: bento.Built,
) -> None:
    packages = {path.name for path in (built.folder / "src").iterdir() if path.is_dir()}
    assert packages == {"weighbridge", "environment"}
    assert {path.name for path in (built.folder / "src" / "weighbridge").iterdir()} == {
        "__init__.py",
        "core",
        "plugins",
        "serving",
    }


def test_of_our_code_all_that_the_service_imports_travels_and_nothing_more(
    built: bento.Built,
) -> None:
    src = built.folder / "src" / "weighbridge"
    travels = {path.relative_to(src).as_posix() for path in src.rglob("*.py")}
    needed = {
        "serving/service.py",
        # The service starts the one by its path, and Kubernetes the other as it ends the service.
        "serving/reaper.py",
        "serving/pod_drain.py",
        *(path.relative_to(src).as_posix() for path in src.glob("serving/engines/*.py")),
    }
    unread = list(needed)
    while unread:
        new = set(imported_by(unread.pop())) - needed
        needed |= new
        unread += new
    # The package's own file lies elsewhere in a checkout than in a Bento, and imports nothing.
    # Engines of other packages import from `plugins`, which imports a name once it is asked for.
    assert travels == {"__init__.py", "plugins/__init__.py", "plugins/shim.py", *needed}


def imported_by(file: str) -> Iterator[str]:
    """Our own files that a file of ours imports, be it late, and the packages they lie in."""
    packages = [parent / "__init__.py" for parent in Path(file).parents if parent.name]
    yield from (package.as_posix() for package in packages)
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        candidates = [f"{name.removeprefix('weighbridge.').replace('.', '/')}.py" for name in names]
        yield from (path for path in candidates if (PACKAGE / path).exists())


def test_the_service_and_every_engine_are_imported_by_the_bentos_own_python(
    built: bento.Built, environment: Environment
) -> None:
    """With all that they import. Scripts that another engine's environment runs by path travel,
    too, and may not.
    """
    names = [
        "weighbridge.serving.service",
        *{path.partition(":")[0] for path in BUILT_IN["engine"].values()},
    ]
    script = (
        "import importlib, sys; sys.path.insert(0, '.'); "
        "[importlib.import_module(name) for name in sys.argv[1:]]"
    )
    command = [str(environment.python), "-I", "-c", script, *names]
    finished = subprocess.run(
        command, cwd=built.folder / "src", capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_it_is_built_where_no_uv_is_on_the_path(
    shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not bento.build(bentos.contents(shared, name="pathless"), shared.settings.cache).reused


def test_model_is_the_stores_own_file(built: bento.Built, contents: bento.Contents) -> None:
    assert (built.model / "model.gguf").samefile(contents.model.path / "model.gguf")


def test_requirements_are_the_engines_lock_with_its_hashes(
    built: bento.Built, contents: bento.Contents
) -> None:
    requirements = built.folder / "env" / "python" / "requirements.txt"
    assert requirements.read_text() == contents.lock.read_text()


def test_uv_adds_nothing_to_the_requirements_of_a_bento(built: bento.Built, tmp_path: Path) -> None:
    folder = shutil.copytree(built.folder / "env" / "python", tmp_path / "python")
    (folder / "requirements.txt").write_text("anyio\n")
    command = [
        uv(),
        "--directory",
        str(folder),
        "pip",
        "install",
        "--target",
        str(tmp_path),
        "--dry-run",
    ]
    finished = subprocess.run(
        [*command, "-r", "requirements.txt"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert re.findall(r"^ \+ (\w+)==", finished.stderr, re.MULTILINE) == ["anyio"], finished.stderr


def test_built_again_it_is_reused(
    built: bento.Built, contents: bento.Contents, shared: Workspace
) -> None:
    again = bento.build(contents, shared.settings.cache)
    assert again == replace(built, reused=True)


def test_other_lineage_is_another_version(contents: bento.Contents) -> None:
    other = replace(contents, lineage={"recipe": "another"})
    assert other.tag != contents.tag
    assert other.model_version == contents.model_version


def test_names_that_bentoml_refuses_are_made_fit(contents: bento.Contents) -> None:
    assert replace(contents, name="Team A/Größe").bento_name == "team-a-gr-e"


def test_a_build_that_fails_leaves_nothing_behind(
    contents: bento.Contents, shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setattr(bento, "BUILDER", tmp_path / "missing.py")
    with pytest.raises(Unavailable, match="building Bento"):
        bento.build(contents, shared.settings.cache)
    assert bentos.files(tmp_path / "bentoml") <= {"tmp/weighbridge-demo.lock"}


def test_half_a_bento_of_somebody_killed_and_a_damaged_model_are_replaced(
    contents: bento.Contents, shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    (bento.folder_of(contents.tag) / "src").mkdir(parents=True)
    model = tmp_path / "bentoml" / "models" / contents.bento_name / contents.model_version
    model.mkdir(parents=True)
    (model / "model.yaml").touch()
    (model / "model.gguf").write_bytes(b"damaged")
    built = bento.build(contents, shared.settings.cache)
    assert (built.folder / "bento.yaml").exists()
    assert bento.digest_of_model(built.model) == contents.model.digest


def test_bentoml_lists_it_with_its_lineage(built: bento.Built, environment: Environment) -> None:
    command = [str(environment.bin("bentoml")), "list", "--output", "json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert built.tag in {entry["tag"] for entry in listed}
    assert json.loads((built.folder / "src" / "lineage.json").read_text()) == {"recipe": "test"}
    assert "recipe: test" in (built.folder / "bento.yaml").read_text()


def test_its_environment_holds_none_of_the_control_plane(environment: Environment) -> None:
    installed = {
        path.name.split("-")[0]
        for path in environment.path.glob("lib/python*/site-packages/*.dist-info")
    }
    assert "bentoml" in installed
    assert installed.isdisjoint({"prefect", "mlflow", "torch", "transformers", "weighbridge"})
