"""Secrets that an installation makes for itself: one file each, for its owner alone; and the
variables by which its services are told secrets.

::

    HOME/secrets/prefect   login of Prefect's API and UI: user:password
    HOME/secrets/deployer  what the deployer's wake-up calls are authorized by
"""

import contextlib
import secrets
from pathlib import Path
from typing import Final, Literal, get_args

from weighbridge.core.files import made_once

Name = Literal["prefect", "deployer"]
PREFECT_USER = "weighbridge"
Variable = Literal[
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_API_AUTH_STRING",
    "WEIGHBRIDGE_DATABASE_URL",
    "WEIGHBRIDGE_TRACKING_URI",
    "WEIGHBRIDGE_WEBHOOK_SECRET",
]
VARIABLES: Final[frozenset[str]] = frozenset(get_args(Variable))
"""A service gets its own by a file; nothing else that is started gets any."""


def read(home: Path, name: Name) -> str | None:
    """Return a secret; None where there is none yet."""
    with contextlib.suppress(FileNotFoundError):
        return (home / "secrets" / name).read_text().strip()
    return None


def ensure(home: Path, name: Name) -> str:
    """Return a secret, which is made where there is none."""
    path = home / "secrets" / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    value = secrets.token_urlsafe(32)
    fresh = f"{PREFECT_USER}:{value}" if name == "prefect" else value
    return made_once(path, fresh, mode=0o600).strip()
