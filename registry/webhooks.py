"""Our webhook in MLflow: made, and repaired, so that it calls the deployer with its secret."""

import hashlib
import logging
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

from weighbridge.core.errors import Unavailable
from weighbridge.registry.connection import Connection

if TYPE_CHECKING:
    from mlflow.entities.webhook import Webhook

logger = logging.getLogger(__name__)

NAME = "weighbridge-deployer"
EVENTS = ("model_version_alias.created", "model_version_alias.deleted")
_ABOUT = (
    "Wakes Weighbridge's deployer when an alias moves. It makes and repairs this webhook by itself."
)

Known = MutableMapping[str, tuple[int, str]]
"""Webhooks as this process left them: id to time of change and what it was set to."""


def ensure(connection: Connection, url: str, secret: str, known: Known) -> None:
    """Have one webhook of our name be there, active, with this address and secret.

    MLflow does not tell a secret, so one that this process did not set itself, or that was changed
    since, is set again.

    Raises:
        Unavailable: MLflow is no server, or one that keeps no webhooks.
    """
    doing = "setting up the webhook in MLflow"
    if not connection.uri.startswith(("http://", "https://")):
        raise Unavailable(
            doing,
            "it is opened as a database, and only its server sends webhooks",
            "weighbridge up",
        )
    with connection.doing(doing), connection.alone("webhook"):
        hooks = sorted(_ours(connection), key=lambda hook: hook.creation_timestamp)
        # Two deployers that started at once on two machines may both have made one.
        for double in hooks[1:]:
            connection.client.delete_webhook(double.webhook_id)
        digest = hashlib.sha256(f"{url} {secret}".encode()).hexdigest()
        if hooks and known.get(hooks[0].webhook_id) == (hooks[0].last_updated_timestamp, digest):
            return
        webhook = (
            _repair(connection, hooks[0], url, secret)
            if hooks
            else _create(connection, url, secret)
        )
        known[webhook.webhook_id] = (webhook.last_updated_timestamp, digest)


def _create(connection: Connection, url: str, secret: str) -> "Webhook":
    logger.info("making the webhook to %s in MLflow", url)
    return connection.client.create_webhook(
        NAME, url, list(EVENTS), description=_ABOUT, secret=secret
    )


def _repair(connection: Connection, hook: "Webhook", url: str, secret: str) -> "Webhook":
    logger.info("setting the webhook to %s in MLflow", url)
    return connection.client.update_webhook(
        hook.webhook_id,
        url=url,
        events=list(EVENTS),
        description=_ABOUT,
        secret=secret,
        status="ACTIVE",
    )


def _ours(connection: Connection) -> "Iterator[Webhook]":
    token = None
    while True:
        page = connection.client.list_webhooks(max_results=100, page_token=token)
        yield from (hook for hook in page if hook.name == NAME)
        if not (token := page.token):
            return
