"""Which homes work with one MLflow now: an entry for each process, among the tags of the ledger.

What two must not do at once is guarded by PostgreSQL, or else by files of one home (locks.py). So a
second home is refused where the database is SQLite, or where PostgreSQL guards it for one of both
alone. Of an MLflow server of the user's own nobody here knows what it keeps its tables in: homes
that share one are let through.
"""

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from weighbridge.core.errors import BadInput
from weighbridge.core.files import made_once
from weighbridge.core.settings import Settings
from weighbridge.registry import leases
from weighbridge.registry.connection import Connection, connect
from weighbridge.registry.ledger import EXPERIMENT
from weighbridge.registry.mlflow_errors import without_secrets

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Guard = Literal["postgresql", "sqlite", "server"]
_TAG: Final = "weighbridge.home."
_REMEDY: Final = (
    "set WEIGHBRIDGE_DATABASE_URL=postgresql://USER:PASSWORD@HOST/DATABASE, for all homes the same "
    "database"
)


class Presence(BaseModel):
    """A process that works with this MLflow."""

    model_config = ConfigDict(frozen=True)

    home: str
    """An id that a home has for ever; it tells nothing of where it is."""
    host: str
    guard: Guard
    owner: dict[str, str]
    """As of a run: the process, and the lease that it renews (leases.py)."""


@contextlib.contextmanager
def joined(connection: Connection, doing: str) -> Iterator[None]:
    """Be among the homes that work with this MLflow, for as long as the block lasts.

    Args:
        connection: to MLflow.
        doing: what is begun, for the message.

    Raises:
        BadInput: another home works with it, and the two would not be kept apart.
    """
    entry = join(connection, doing)
    try:
        yield
    finally:
        leave(connection, entry)


def join(connection: Connection, doing: str) -> str:
    """Be among the homes that work with this MLflow until this process ends, or leaves it.

    Returns:
        The name of its entry, which `leave` takes.

    Raises:
        BadInput: another home works with it, and the two would not be kept apart.
    """
    refuse_others(connection, doing)
    entry = f"{_TAG}{_home_id(connection.settings.home)}.{os.getpid()}"
    try:
        experiment = connection.experiment(EXPERIMENT)
    except BadInput:
        return entry  # somebody deleted the ledger: that ends no release

    def renew() -> None:
        presence = _own(connection)
        connection.client.set_experiment_tag(experiment, entry, presence.model_dump_json())

    with connection.doing(f"{doing}: noting in MLflow that this home works with it"):
        renew()
    leases.keeper.hold(entry, renew)
    try:
        # Again: of two that looked at once both have found nobody.
        refuse_others(connection, doing)
    except BadInput:
        leave(connection, entry)
        raise
    return entry


def leave(connection: Connection, entry: str) -> None:
    """Be no longer among the homes that work with this MLflow."""
    leases.keeper.release(entry)
    experiment = _known_ledger(connection)
    if experiment is not None:
        _delete(connection.client, experiment, entry)


def refuse_others(connection: Connection, doing: str) -> None:
    """Raise BadInput where another home works with this MLflow that nothing keeps apart from this.

    Nothing is written.
    """
    own = _own(connection)
    for other in _present(connection):
        if other.home == own.home or (other.guard == own.guard and own.guard != "sqlite"):
            continue
        one_alone = "PostgreSQL keeps two homes apart, and only one of them is told of it"
        in_sqlite = "SQLite does not keep two homes apart"
        why = in_sqlite if "sqlite" in (own.guard, other.guard) else one_alone
        raise BadInput(
            doing,
            f"a home on {other.host} works with MLflow at {without_secrets(connection.uri)} as "
            f"well, and {why}",
            _REMEDY,
        )


def check(settings: Settings, doing: str) -> None:
    """Raise BadInput where another home works with the MLflow that the settings name by address.

    An MLflow of this home's own is not looked at: runs and the deployer do, which open it anyway.

    Raises:
        Unavailable: MLflow does not answer.
    """
    if settings.tracking_uri:
        refuse_others(connect(settings), doing)


def _present(connection: Connection) -> Iterator[Presence]:
    """Yield the processes that live; the entries of those that do not are removed."""
    experiment = _known_ledger(connection)
    if experiment is None:
        return
    with connection.doing("reading which homes work with MLflow"):
        tags = dict(connection.client.get_experiment(experiment).tags)
    for name, text in tags.items():
        if not name.startswith(_TAG):
            continue
        with contextlib.suppress(ValidationError):
            presence = Presence.model_validate_json(text)
            if not leases.is_gone(presence.owner):
                yield presence
                continue
        _delete(connection.client, experiment, name)


def _known_ledger(connection: Connection) -> str | None:
    with contextlib.suppress(BadInput):
        return connection.known_experiment(EXPERIMENT)
    return None


def _own(connection: Connection) -> Presence:
    settings = connection.settings
    guard: Guard = "server"
    if settings.postgresql_url("psycopg2"):
        guard = "postgresql"
    elif connection.uri.startswith("sqlite:"):
        guard = "sqlite"
    return Presence(
        home=_home_id(settings.home), host=socket.gethostname(), guard=guard, owner=leases.tags()
    )


def _home_id(home: Path) -> str:
    """Return the id of a home, made where it has none. It moves with the home's folder."""
    return made_once(home / "home-id", uuid.uuid4().hex).strip()


def _delete(client: "MlflowClient", experiment: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    # Somebody else has removed it, or the server is older than such calls: its lease runs out.
    with contextlib.suppress(MlflowException):
        client.delete_experiment_tag(experiment, name)
