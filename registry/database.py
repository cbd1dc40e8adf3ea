"""MLflow's database, where the installation keeps it itself: in SQLite, or in PostgreSQL.

MLflow's 60 migrations take seconds, copying a file does not: an empty SQLite database is made once
per machine, and copied.
"""

import importlib.metadata
import logging
import tempfile
from pathlib import Path

from filelock import FileLock

from weighbridge.core.errors import Unavailable
from weighbridge.core.fast_start import NAME_IS_GONE, warn_name_is_gone
from weighbridge.core.files import replace_with_copy
from weighbridge.core.settings import Settings
from weighbridge.registry import mlflow_internals
from weighbridge.registry.loading import load_mlflow
from weighbridge.registry.locks import alone
from weighbridge.registry.mlflow_errors import translated, without_secrets

logger = logging.getLogger(__name__)

REMEDY = "check WEIGHBRIDGE_HOME, WEIGHBRIDGE_DATABASE_URL and WEIGHBRIDGE_TRACKING_URI"
_SQLITE, _POSTGRESQL = "sqlite:///", "postgresql"
_SQLITE_MAGIC = b"SQLite format 3\0"
_SCHEMA = "mlflow"


def prepare_database(settings: Settings) -> None:
    """Have MLflow's tables be there, where the installation keeps them itself.

    Raises:
        Unavailable: the database does not answer, or is none.
    """
    uri = settings.mlflow_uri()
    if not uri.startswith((_SQLITE, _POSTGRESQL)):
        return
    with translated(f"opening MLflow's database {without_secrets(uri)}", REMEDY):
        if uri.startswith(_POSTGRESQL):
            make_schema(settings, _SCHEMA)
        elif (database := Path(uri.removeprefix(_SQLITE))).exists():
            _check(database)
            return
        _make_tables(uri, settings)


def make_schema(settings: Settings, name: str) -> None:
    """Have PostgreSQL keep a schema of this name in the installation's database, where it uses one.

    Raises:
        Unavailable: it does not answer, or refuses.
    """
    from sqlalchemy import create_engine, text

    uri = settings.postgresql_url("psycopg2")
    if uri is None:
        return
    with translated(
        f"opening the database {without_secrets(uri)}", "check WEIGHBRIDGE_DATABASE_URL"
    ):
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


def _make_tables(uri: str, settings: Settings) -> None:
    """Make MLflow's tables, by one process at a time: two at once would stumble over each other."""
    with alone(f"mlflow-tables {uri}", settings):
        if settings.fast_start:
            try:
                _make_tables_fast(uri, settings.cache)
            except NAME_IS_GONE as exc:
                warn_name_is_gone("mlflow", exc)
            else:
                return
        # MLflow's client makes them when it first asks a database for anything.
        client = load_mlflow(fast=settings.fast_start)
        client(tracking_uri=uri, registry_uri=uri).get_experiment_by_name("Default")


def _make_tables_fast(uri: str, cache: Path) -> None:
    if uri.startswith(_POSTGRESQL):
        load_mlflow()
        mlflow_internals.make_tables(uri)
    elif not (database := Path(uri.removeprefix(_SQLITE))).exists():
        replace_with_copy(database, _template(cache), mode=0o600)


def _check(database: Path) -> None:
    """Raise Unavailable where a file is no database: MLflow would try for a minute to open it."""
    with database.open("rb") as stream:
        start = stream.read(len(_SQLITE_MAGIC))
    # SQLite takes an empty file for an empty database.
    if start not in (b"", _SQLITE_MAGIC):
        raise Unavailable(
            f"opening MLflow's database {database}",
            "it is not an SQLite file, or damaged",
            "move it away",
        )


def _template(cache: Path) -> Path:
    """Return this machine's empty database, made where it is not there."""
    version = importlib.metadata.version("mlflow")
    template = cache / "mlflow" / f"empty-{version}.db"
    template.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{template}.lock"):
        if not template.exists():
            logger.info("making MLflow's empty database, once per machine")
            load_mlflow()
            with tempfile.TemporaryDirectory(dir=template.parent) as folder:
                scratch = Path(folder) / "mlflow.db"
                mlflow_internals.make_sqlite(scratch)
                replace_with_copy(template, scratch)
    return template
