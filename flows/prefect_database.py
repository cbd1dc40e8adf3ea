"""The SQLite database of Prefect's server: migrated once per Prefect version and machine, then
copied.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_text, replace_with_copy
from weighbridge.core.private_folders import make_private
from weighbridge.core.settings import Settings


def prepare_database(settings: Settings) -> None:
    """Copy an empty, migrated database for a server that is about to start, where this machine has
    one.
    """
    home = settings.home / "prefect"
    make_private(home)
    with starting(home) as database:
        database.needs_migration(settings.cache)


@contextlib.contextmanager
def starting(home: Path) -> Iterator["PrefectDatabase"]:
    """Keep other servers of this home from starting within the block: two must not both migrate."""
    with FileLock(home / "starting.lock"):
        yield PrefectDatabase(home)


class PrefectDatabase:
    """The database of one home."""

    def __init__(self, home: Path) -> None:
        self._database = home / "prefect.db"
        self._version_file = home / "prefect.db.version"
        self._version = version("prefect")
        self._was_empty = not self._database.exists()

    def needs_migration(self, cache: Path) -> bool:
        """Whether the server has to make the tables of this Prefect version.

        Where the home has no database and the cache has a migrated one, that is copied.

        Raises:
            Unavailable: the file is no database.
        """
        if not self._was_empty:
            self.check()
            return not (
                self._version_file.exists() and self._version_file.read_text() == self._version
            )
        template = self._template(cache)
        if not template.exists():
            return True
        replace_with_copy(self._database, template, mode=0o600)
        replace_text(self._version_file, self._version)
        return False

    def check(self) -> None:
        """Raise Unavailable where there is a file that is no database."""
        if not self._database.exists():
            return
        try:
            with contextlib.closing(sqlite3.connect(self._database, timeout=60)) as connection:
                # SQLite reads a file only when it is first asked for something.
                connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.DatabaseError as exc:
            remedy = f"move {self._database} away: it holds nothing but the history of runs"
            raise Unavailable("opening Prefect's database", str(exc), remedy) from exc

    def migrated(self, cache: Path) -> None:
        """Note that the server has migrated, and keep an empty database for the next home."""
        replace_text(self._version_file, self._version)
        template = self._template(cache)
        # A database with runs in it is nobody's template.
        if not self._was_empty or template.exists():
            return
        cache.mkdir(parents=True, exist_ok=True)
        scratch = template.with_suffix(f".{os.getpid()}")
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            # Of a database that a server has open, a copy of the file alone could miss what is in
            # its journal.
            connection.execute("VACUUM INTO ?", (str(scratch),))
        scratch.replace(template)

    def _template(self, cache: Path) -> Path:
        return cache / f"prefect-{self._version}.db"
