"""Errors of MLflow and of the libraries below it, in one line each."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.core.formatting import one_line

_BELOW = ("mlflow", "requests", "urllib3", "sqlalchemy", "alembic", "botocore", "boto3")

_LOGIN = r"://[^/\s]*@"
"""User and password in an address; a password may have an @ in it."""


@contextmanager
def translated(doing: str, remedy: str) -> Iterator[None]:
    """Raise whatever MLflow raises inside as Unavailable."""
    try:
        yield
    except WeighbridgeError:
        raise
    except Exception as exc:
        # MLflow lets errors of every library below it through.
        if not isinstance(exc, OSError) and not type(exc).__module__.startswith(_BELOW):
            raise
        raise Unavailable(doing, words_of(exc), remedy) from exc


def words_of(exc: BaseException) -> str:
    """Return an error's own words, shortened, on one line, without logins."""
    return one_line(re.sub(_LOGIN, "://***@", str(exc)), 300)


def without_secrets(uri: str) -> str:
    """Return a URI without the password in it, nor the options after its path."""
    return re.sub(_LOGIN, "://***@", uri).partition("?")[0]


def without_login(uri: str) -> str:
    """Return a URI with nobody's name and password in it: whoever opens it has their own."""
    return without_secrets(uri).replace("***@", "")
