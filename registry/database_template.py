"""An empty MLflow database, made once per machine: its 60 migrations take seconds, copying a file
does not.
"""

import importlib.metadata
import logging
import tempfile
from pathlib import Path

from filelock import FileLock

from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_with_copy

logger = logging.getLogger("weighbridge.registry")

PREFIX = "sqlite:///"
_MAGIC = b"SQLite format 3\0"


def prepare(uri: str, cache: Path) -> None:
    """Where `uri` names a SQLite file that is not there yet, put an empty, migrated database in its
    place.
    """
    if not uri.startswith(PREFIX):
        return
    database = Path(uri.removeprefix(PREFIX))
    if database.exists():
        _check(database)
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        if not database.exists():
            replace_with_copy(database, _template(cache))


def _check(database: Path) -> None:
    """MLflow would try for a minute to open what is no database."""
    with database.open("rb") as stream:
        start = stream.read(len(_MAGIC))
    if start not in (b"", _MAGIC):
        raise Unavailable(
            f"opening MLflow's database {database}",
            "it is not an SQLite file, or damaged",
            "move it away",
        )


def _template(cache: Path) -> Path:
    version = importlib.metadata.version("mlflow")
    template = cache / "mlflow" / f"empty-{version}.db"
    template.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{template}.lock"):
        if not template.exists():
            logger.info("making MLflow's empty database, once per machine")
            _make(template)
    return template


def _make(template: Path) -> None:
    """MLflow's own migrations, on a scratch file whose every write need not reach the disk."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
    from sqlalchemy import event

    def hasten(connection: object, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # type: ignore[attr-defined]

    with tempfile.TemporaryDirectory(dir=template.parent) as folder:
        scratch = Path(folder) / "mlflow.db"
        engine = create_sqlalchemy_engine(f"{PREFIX}{scratch}")
        event.listen(engine, "connect", hasten)
        # MLflow offers no public function for this; the version is pinned and a test holds it.
        _initialize_tables(engine)
        engine.dispose()
        replace_with_copy(template, scratch)
