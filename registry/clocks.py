"""This machine's clock beside that of MLflow's server, or of the database.

Leases of runs and of homes are compared by the clocks of two machines (leases.py). The lock of a
target is not: whoever waits for it measures by one clock how long its lease has not changed.
"""

import contextlib
import logging
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from weighbridge.core.errors import Unavailable
from weighbridge.core.settings import Settings
from weighbridge.registry.mlflow_errors import without_secrets

BORNE: Final = 60.0
"""Seconds by which two clocks may differ: a lease lasts three minutes, and is renewed twice a
minute, also where MLflow is away for one.
"""

logger = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """Raise Unavailable where the clocks differ by more than leases bear.

    Nothing is said where the other clock cannot be read, or is this machine's own.
    """
    where, ahead = _difference(settings)
    if abs(ahead) <= BORNE:
        return
    direction = "ahead of" if ahead > 0 else "behind"
    raise Unavailable(
        "comparing clocks",
        f"this machine's is {abs(ahead):.0f} s {direction} that of {where}, and {BORNE:.0f} s are "
        "borne: a run that lives elsewhere may be taken for dead",
        "set both by NTP",
    )


def warn(settings: Settings) -> None:
    """Say in the log what `check` raises."""
    try:
        check(settings)
    except Unavailable as exc:
        logger.warning("%s", exc)


def _difference(settings: Settings) -> tuple[str, float]:
    """Return whose clock it is, and by how many seconds this machine's is ahead of it."""
    asked = time.time()
    if settings.tracking_uri.startswith(("http://", "https://")):
        where, theirs = without_secrets(settings.tracking_uri), _of_server(settings.tracking_uri)
    elif url := settings.postgresql_url("psycopg2"):
        where, theirs = without_secrets(url), _of_database(url)
    else:
        return "", 0.0
    ahead = (asked + time.time()) / 2 - theirs if theirs is not None else 0.0
    return where, ahead


def _of_server(uri: str) -> float | None:
    """Return the Unix time by the header that every answer has, an error too."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        parts = urlsplit(uri)
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
                date = answer.headers["Date"]
        except urllib.error.HTTPError as exc:
            date = exc.headers["Date"]
        return parsedate_to_datetime(date).timestamp()
    return None


def _of_database(url: str) -> float | None:
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    engine = create_engine(url)
    try:
        with engine.connect() as database:
            now = database.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar()
            return float(now or 0.0)
    except SQLAlchemyError:
        return None
    finally:
        engine.dispose()
