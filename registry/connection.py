"""The connection to MLflow: loading it cheaply, finding experiments, translating its errors."""

import hashlib
import importlib.abc
import importlib.machinery
import logging
import os
import re
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from filelock import FileLock

from weighbridge.core.errors import BadInput, Unavailable, WeighbridgeError
from weighbridge.core.settings import Settings
from weighbridge.registry import database_template

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger("weighbridge.registry")

_OPTIONAL = frozenset({"numpy", "pandas", "pyarrow"})
_BELOW = ("mlflow", "requests", "urllib3", "sqlalchemy", "alembic", "botocore", "boto3")
_KIND, _TRAINING = "mlflow.experimentKind", "custom_model_development"
"""Without it MLflow's UI takes models for agents and shows no metrics beside them."""
_REMEDY = "check WEIGHBRIDGE_HOME, WEIGHBRIDGE_DATABASE_URL and WEIGHBRIDGE_TRACKING_URI"
_MLFLOW_SCHEMA = "mlflow"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _Without(importlib.abc.MetaPathFinder):
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


def load_mlflow() -> "type[MlflowClient]":
    """Import MLflow the way `mlflow-skinny` installs it: without what costs over 40 % of its import
    time.

    MLflow tries these libraries where they are optional to it. They can be imported as usual
    afterwards, and nothing is left out that another module has imported already.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its migrations tell every step at INFO, to a handler of their own on stderr.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    finder = _Without(_OPTIONAL - sys.modules.keys())
    sys.meta_path.insert(0, finder)
    try:
        from mlflow.tracking import MlflowClient
    finally:
        sys.meta_path.remove(finder)
    # It logs, with its traceback, every database error that it then raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    client: type[MlflowClient] = MlflowClient
    return client


def checked_name(name: str) -> str:
    """A name that MLflow, BentoML and a shell take alike.

    Raises:
        BadInput: it has other characters than letters, digits, dot, dash and underscore.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"naming a model '{name}'",
            "only letters, digits, '.', '-' and '_' are allowed, beginning with a letter or digit",
            "choose another name",
        )
    return name


@dataclass(frozen=True)
class Connection:
    """A connected MLflow client and where its files go."""

    client: "MlflowClient"
    uri: str
    artifacts: str
    locks: Path
    _experiments: dict[str, str] = field(default_factory=dict)

    def experiment(self, name: str) -> str:
        """Id of an experiment, created when it is new."""
        if name not in self._experiments:
            with self.doing(f"opening experiment '{name}' in MLflow"):
                self._experiments[name] = self._find(name) or self._create(name)
        return self._experiments[name]

    def known_experiment(self, name: str) -> str | None:
        """Id of an experiment that exists."""
        with self.doing(f"opening experiment '{name}' in MLflow"):
            return self._find(name)

    def _find(self, name: str) -> str | None:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            return None
        if found.lifecycle_stage == "deleted":
            raise BadInput(
                f"opening experiment '{name}' in MLflow",
                "it was deleted there",
                f"restore it (mlflow experiments restore -x {found.experiment_id}) or choose another name",
            )
        return str(found.experiment_id)

    def _create(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = f"{self.artifacts.rstrip('/')}/{name}" if self.artifacts else None
        try:
            return str(
                self.client.create_experiment(
                    name, artifact_location=location, tags={_KIND: _TRAINING}
                )
            )
        except MlflowException as exc:
            found = self._find(name) if exc.error_code == "RESOURCE_ALREADY_EXISTS" else None
            if found is None:
                raise
            return found

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Translate whatever MLflow raises inside into one line."""
        with _translated(what, f"look at MLflow at {_shown(self.uri)}"):
            yield

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Keep the other processes of this installation out of the same change; not to be nested."""
        self.locks.mkdir(parents=True, exist_ok=True)
        bucket = hashlib.sha256(what.encode()).hexdigest()[0]
        with FileLock(self.locks / f"registry-{bucket}.lock"):
            yield


@contextmanager
def _translated(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except WeighbridgeError:
        raise
    except Exception as exc:
        # MLflow lets errors of every library below it through.
        if not isinstance(exc, OSError) and not type(exc).__module__.startswith(_BELOW):
            raise
        raise Unavailable(what, one_line(exc), remedy) from exc


def one_line(exc: BaseException) -> str:
    """An error's own words, shortened, on one line."""
    words = " ".join(str(exc).split())
    return words if len(words) <= 300 else f"{words[:300]}…"


def connect(settings: Settings) -> Connection:
    """Connect to the MLflow that the settings name.

    Raises:
        Unavailable: the server does not answer, or the database cannot be opened.
    """
    uri = settings.mlflow_uri()
    if uri.startswith(("http://", "https://")):
        _knock(uri)
    own_files = not settings.tracking_uri or bool(settings.artifact_root)
    artifacts = settings.mlflow_artifacts() if own_files else ""
    with _translated(f"opening MLflow at {_shown(uri)}", _REMEDY):
        client = _open(uri, settings)
    return Connection(client, uri, artifacts, settings.home / "locks")


def _open(uri: str, settings: Settings) -> "MlflowClient":
    with warnings.catch_warnings():
        # MLflow's dependencies deprecate what MLflow uses; nobody here can do anything about it.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        client_class = load_mlflow()
        prepare_database(settings)
        client = client_class(tracking_uri=uri, registry_uri=uri)
        client.get_experiment_by_name("Default")
        client.search_registered_models(max_results=1)
    return client


def prepare_database(settings: Settings) -> None:
    """MLflow's tables are there, where the installation keeps them itself: in SQLite, or in
    PostgreSQL.

    Raises:
        Unavailable: the database does not answer, or is none.
    """
    uri = settings.mlflow_uri()
    with _translated(f"opening MLflow's database {_shown(uri)}", _REMEDY):
        database_template.prepare(uri, settings.cache)
        if uri.startswith("postgresql"):
            make_schema(settings, _MLFLOW_SCHEMA)
            _make_tables(uri, settings.home / "locks")


def make_schema(settings: Settings, name: str) -> None:
    """Have PostgreSQL keep a schema of this name in the installation's database. Raises
    Unavailable.
    """
    from sqlalchemy import create_engine, text

    uri = settings.postgresql("psycopg2")
    with _translated(f"opening the database {_shown(uri)}", "check WEIGHBRIDGE_DATABASE_URL"):
        engine = create_engine(uri)
        try:
            with engine.begin() as database:
                # PostgreSQL lets two at once fail over the same new schema.
                database.execute(
                    text("SELECT pg_advisory_xact_lock(hashtext('weighbridge.schema'))")
                )
                if not database.execute(
                    text("SELECT to_regnamespace(:name)"), {"name": name}
                ).scalar():
                    database.execute(text(f'CREATE SCHEMA "{name}"'))
        finally:
            engine.dispose()


def _make_tables(uri: str, locks: Path) -> None:
    """MLflow's migrations, by one process at a time: two at once would stumble over each other."""
    load_mlflow()
    from mlflow.store.db.utils import (
        _all_tables_exist,
        _initialize_tables,
        create_sqlalchemy_engine,
    )

    locks.mkdir(parents=True, exist_ok=True)
    engine = create_sqlalchemy_engine(uri)
    try:
        with FileLock(locks / "mlflow-tables.lock"):
            if not _all_tables_exist(engine):
                logger.info("making MLflow's tables")
                # MLflow offers no public function for this; the version is pinned and a test holds
                # it.
                _initialize_tables(engine)
    finally:
        engine.dispose()


def _shown(uri: str) -> str:
    """A URI without the password in it, nor the options after its path."""
    return re.sub(r"://[^@/]*@", "://***@", uri).partition("?")[0]


def _knock(uri: str) -> None:
    """MLflow's own client retries an absent server for minutes: ask once first."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return  # it answers; what it thinks of us comes with the first real call
    except (OSError, ValueError) as exc:
        raise Unavailable(
            f"connecting to MLflow at {_shown(uri)}",
            one_line(exc),
            "start the server, or unset WEIGHBRIDGE_TRACKING_URI",
        ) from exc
