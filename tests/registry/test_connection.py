"""Connecting: cheap, whole, and one line when it fails."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.registry.conftest import Make
from weighbridge.core import fast_start
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import free_port
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Registry, mlflow_internals
from weighbridge.registry.connection import checked_name
from weighbridge.registry.mlflow_errors import words_of
from weighbridge.registry.mlflow_internals import LeftOut

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_the_registry_does_not_import_mlflow() -> None:
    code = "import sys, weighbridge.registry; print({'mlflow', 'pandas'} & set(sys.modules))"
    assert python(code) == "set()"


@pytest.mark.slow
def test_mlflow_comes_without_pandas_and_pandas_can_be_imported_afterwards() -> None:
    code = (
        "import sys; from weighbridge.registry.loading import load_mlflow; load_mlflow();"
        "print('pandas' in sys.modules, 'pyarrow' in sys.modules);"
        "import pandas, pyarrow; print(len(pyarrow.array(pandas.Series([1, 2])).to_numpy()))"
    )
    assert python(code) == "False False\n2"


@pytest.mark.slow
def test_without_a_fast_start_a_version_is_registered(make: Make, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache", fast_start=False)
    assert registered(settings, make) == "1"
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_name_that_is_gone_from_mlflow_is_said_and_a_version_is_registered_all_the_same(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(path: Path) -> None:
        raise ImportError("cannot import name '_initialize_tables' from 'mlflow.store.db.utils'")

    monkeypatch.setattr(fast_start, "_warned", set())
    # MLflow itself needs the name: it is gone for us alone.
    monkeypatch.setattr(mlflow_internals, "make_sqlite", gone)
    assert registered(Settings(home=tmp_path / "home", cache=tmp_path / "cache"), make) == "1"
    [warning] = [line for line in caplog.messages if "has changed inside" in line]
    assert "_initialize_tables" in warning
    assert "WEIGHBRIDGE_FAST_START=false" in warning


@pytest.mark.slow
def test_an_mlflow_that_cannot_do_without_pandas_is_imported_with_it() -> None:
    code = (
        "from weighbridge.registry import loading, mlflow_internals\n"
        "mlflow_internals._OPTIONAL = frozenset({'pandas', 'yaml'})\n"
        "print(loading.load_mlflow().__name__)"
    )
    assert python(code) == "MlflowClient"


def registered(settings: Settings, make: Make) -> str:
    """Register an artifact in a new database; return the version it became."""
    registry = Registry.connect(settings)
    with registry.release("shop", 1, params={}, tags={}) as run:
        return registry.register("shop", "base", make("weights"), run=run).version


def test_other_threads_import_what_they_like_meanwhile() -> None:
    finder = LeftOut(frozenset({"pandas"}))
    with pytest.raises(ModuleNotFoundError):
        finder.find_spec("pandas", None)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(finder.find_spec("pandas", None)))
    thread.start()
    thread.join()
    assert found == [None]


def test_an_absent_server_is_said_at_once_and_on_one_line(workspace: Workspace) -> None:
    settings = Settings(
        home=workspace.settings.home, tracking_uri=f"http://127.0.0.1:{free_port()}"
    )
    with pytest.raises(Unavailable, match="connecting to MLflow at http://127") as stop:
        Registry.connect(settings)
    assert "\n" not in str(stop.value)


def test_a_damaged_database_is_said_on_one_line(workspace: Workspace) -> None:
    workspace.settings.home.mkdir(parents=True)
    (workspace.settings.home / "mlflow.db").write_text(
        "this is no database, and never was one\n" * 100
    )
    with pytest.raises(Unavailable, match="not an SQLite file") as stop:
        Registry.connect(workspace.settings)
    assert "\n" not in str(stop.value)


def test_the_database_is_mlflows_own_and_needs_no_migration(
    registry: Registry, workspace: Workspace
) -> None:
    from mlflow.store.db.utils import _verify_schema, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(workspace.settings.mlflow_uri())
    _verify_schema(engine)
    engine.dispose()


def test_an_experiment_deleted_in_the_ui_is_named_with_its_remedy(registry: Registry) -> None:
    experiment = registry.connection.experiment("gone")
    registry.connection.client.delete_experiment(experiment)
    registry.connection._experiments.clear()
    with pytest.raises(BadInput, match=r"mlflow experiments restore -x"):
        registry.connection.experiment("gone")


@pytest.mark.parametrize("name", ["a/b", "", "-x", "a b", "it's", "x" * 101])
def test_names_that_would_break_somewhere_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="choose another name"):
        checked_name(name)


def test_a_login_in_the_address_is_in_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    caplog.set_level("DEBUG")
    for host in (f"127.0.0.1:{free_port()}", "[::1", "127.0.0.1:none"):
        address = f"http://somebody:hid@den@{host}/path?key=hidden"
        with pytest.raises(Unavailable, match="connecting to MLflow at") as caught:
            Registry.connect(Settings(home=tmp_path, tracking_uri=address))
        assert "den" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "hid@den" not in caplog.text
    assert words_of(ValueError("bad http://a:b@c@host/x")) == "bad http://***@host/x"
