"""One change at a time: what two must not do at once, such as to look for a version and make it.

Where the installation's database is PostgreSQL, everybody who uses it is kept out, from whichever
home or machine: an advisory lock, which the server drops with the connection of a process that is
killed (PostgreSQL manual, section 13.3.5). Else it is the processes of this home, by a lock file.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

from filelock import FileLock

from weighbridge.core.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


@contextmanager
def alone(what: str, settings: Settings) -> Iterator[None]:
    """Keep others out of the same change; not to be nested."""
    digest = hashlib.sha256(f"weighbridge {what}".encode()).digest()
    uri = settings.postgresql_url("psycopg2")
    if uri is None:
        locks = settings.home / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        # Sixteen lock files, and not one for each version that was ever registered.
        with FileLock(locks / f"registry-{digest.hex()[0]}.lock"):
            yield
        return
    from sqlalchemy import text

    # Without a transaction: a server may end those that do nothing for a while.
    with _engine(uri).connect() as connection:
        connection.execute(
            text("SELECT pg_advisory_lock(:key)"),
            {"key": int.from_bytes(digest[:8], "big", signed=True)},
        )
        yield


@lru_cache(maxsize=4)
def _engine(uri: str) -> "Engine":
    from sqlalchemy import NullPool, create_engine

    # A lock ends with its connection, so that none may go back to a pool.
    return create_engine(uri, poolclass=NullPool, isolation_level="AUTOCOMMIT")
