"""Events for Prefect, on which people build automations.

Nobody waits until Prefect has taken one, and nothing fails where it does not.
"""

import logging
import queue
import threading
import uuid
from collections.abc import Callable
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)

ROLLED_BACK = "weighbridge.rolled-back"
# Bounded: Prefect may be away for days, and the deployer's memory must not grow with that.
_LONGEST_QUEUE = 1000
_NAMESPACE = uuid.UUID("5f0a0c4e-3c55-4e0b-9f0e-7d7ad7c1d5a1")
"""Any will do, as long as it stays: an event's id follows from it and from the event's key."""


class Announcement(BaseModel):
    """An event of Prefect's about a registered model."""

    model_config = ConfigDict(frozen=True)

    event: str
    model: str
    related: dict[str, str] = Field({}, description="Resource id to role.")
    payload: dict[str, Any] = {}
    key: str = Field("", description="Two with the same key are the same event.")

    def body(self) -> dict[str, Any]:
        """Return it as Prefect's API takes it."""
        from prefect.events import Event, RelatedResource, Resource

        labels = {
            "prefect.resource.id": f"mlflow.model.{self.model}",
            "prefect.resource.name": self.model,
        }
        related = [
            RelatedResource.model_validate(
                {"prefect.resource.id": resource, "prefect.resource.role": role}
            )
            for resource, role in self.related.items()
        ]
        event = Event(
            event=self.event,
            resource=Resource.model_validate(labels),
            related=related,
            payload=self.payload,
            # The same id again, so that an event that is sent twice is one.
            id=uuid.uuid5(_NAMESPACE, self.key) if self.key else uuid.uuid4(),
        )
        return event.model_dump(mode="json")


def rolled_back(target: str, model: str, version: str, to: str, why: str) -> Announcement:
    """Return the event of a version that was rolled back without anybody asking."""
    return Announcement(
        event=ROLLED_BACK,
        model=model,
        payload={"target": target, "version": version, "to": to, "why": why},
        related={
            f"weighbridge.target.{target}": "target",
            f"mlflow.model-version.{model}.{version}": "model-version",
            f"mlflow.model-version.{model}.{to}": "went-back-to",
        },
    )


def rollout_ended(
    target: str, model: str, version: str, serving: str, outcome: str, why: str
) -> Announcement:
    """Return the event of a rollout's end: `weighbridge.rollout-OUTCOME`.

    Args:
        target: where.
        model: the registered model that serves there.
        version: that was to serve; empty where none is desired.
        serving: version that serves now; empty for none.
        outcome: served, failed, taken-back or kept.
        why: a sentence on it.
    """
    versions = {serving: "serving", version: "model-version"}
    return Announcement(
        event=f"weighbridge.rollout-{outcome}",
        model=model,
        payload={"target": target, "version": version, "serving": serving, "why": why},
        related={
            f"weighbridge.target.{target}": "target",
            **{f"mlflow.model-version.{model}.{one}": versions[one] for one in versions if one},
        },
    )


def announce(announcement: Announcement) -> bool:
    """Send an event to Prefect now; False where Prefect does not take it."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:  # without one, Prefect would start a server of its own
        return False
    try:
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[announcement.body()])
    except (httpx.HTTPError, PrefectException, OSError) as exc:
        logger.warning("Prefect did not take the event %s: %s", announcement.event, exc)
        return False
    return True


class Announcer:
    """Sends events on a thread of its own, and drops what Prefect is too slow for."""

    def __init__(self, send: Callable[[Announcement], object] = announce) -> None:
        self._send = send
        self._waiting: queue.Queue[Announcement] = queue.Queue(_LONGEST_QUEUE)
        # A daemon: an event that still waits must not keep the process from ending.
        threading.Thread(target=self._run, name="announcer", daemon=True).start()

    def __call__(self, announcement: Announcement) -> None:
        try:
            self._waiting.put_nowait(announcement)
        except queue.Full:
            logger.warning("Prefect is behind: the event %s is dropped", announcement.event)

    def _run(self) -> None:
        while True:
            self._send(self._waiting.get())
