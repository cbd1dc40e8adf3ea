"""Every use of MLflow that its documentation does not offer, and no other module's.

`registry.database` and `load_mlflow` go the public way where one of these names is gone.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_OPTIONAL = frozenset({"numpy", "pandas", "pyarrow"})
"""What MLflow's `mlflow-skinny` goes without; it costs over 40 % of MLflow's import time."""


class LeftOut(importlib.abc.MetaPathFinder):
    """Lets one thread import as if some optional libraries were not installed."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name in self.names and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"{name} is left out while MLflow is imported", name=name)
        return None


def import_lean() -> "type[MlflowClient]":
    """Import MLflow the way `mlflow-skinny` installs it.

    MLflow tries these libraries where they are optional to it. They can be imported as usual
    afterwards, and nothing is left out that another module has imported already.
    """
    before = set(sys.modules)
    finder = LeftOut(_OPTIONAL - before)
    sys.meta_path.insert(0, finder)
    try:
        from mlflow.tracking import MlflowClient
    except BaseException:
        # What was imported meanwhile has noted that the libraries are not there.
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "mlflow":
                del sys.modules[name]
        raise
    finally:
        sys.meta_path.remove(finder)
    client: type[MlflowClient] = MlflowClient
    return client


def replace_command_by_server() -> None:
    """Have `mlflow server` become the server that it starts, where it would wait for it.

    That second process takes as much memory as the server itself, and as long to import MLflow.
    """
    # Before MLflow's server, which takes up its guard against foreign hosts and origins only where
    # it finds this imported.
    import uvicorn
    from mlflow import server

    def become(
        command: list[str], *, extra_env: Mapping[str, str] | None = None, **_: object
    ) -> None:
        os.environ.update(extra_env or {})
        if command[1:3] == ["-m", "uvicorn"]:
            uvicorn.main(command[3:])
        os.execv(command[0], command)

    if not server.is_running_as_server:
        raise ImportError("mlflow.server was imported before uvicorn")
    # AttributeError where it is gone: assigned alone, the command would go on as before.
    del server._exec_cmd
    server._exec_cmd = become


def make_sqlite(path: Path) -> None:
    """Have MLflow's migrations make its tables in a SQLite file whose every write need not reach
    the disk.
    """
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
    from sqlalchemy import event

    def hasten(connection: object, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # type: ignore[attr-defined]

    engine = create_sqlalchemy_engine(f"sqlite:///{path}")
    event.listen(engine, "connect", hasten)
    _initialize_tables(engine)
    engine.dispose()


def make_tables(uri: str) -> None:
    """Have MLflow's migrations make its tables in a database, where they are not there."""
    from mlflow.store.db.utils import (
        _all_tables_exist,
        _initialize_tables,
        create_sqlalchemy_engine,
    )

    engine = create_sqlalchemy_engine(uri)
    try:
        if not _all_tables_exist(engine):
            _initialize_tables(engine)
    finally:
        engine.dispose()
