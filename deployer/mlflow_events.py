"""MLflow's webhooks as Prefect's events, for automations that wait for the registry to change."""

from weighbridge.deployer.webhook_receiver import Delivery
from weighbridge.flows.events import Announcement


def of_delivery(delivery: Delivery) -> Announcement:
    """Return the event of Prefect's that a webhook of MLflow's becomes."""
    names = {key: str(delivery.data.get(key) or "") for key in ("name", "alias", "version")}
    related = {
        f"mlflow.model-version.{names['name']}.{names['version']}": "model-version"
        if names["version"]
        else "",
        f"mlflow.alias.{names['alias']}": "alias" if names["alias"] else "",
    }
    return Announcement(
        event=delivery.event,
        model=names["name"] or "unknown",
        payload=delivery.data,
        key=delivery.id,
        related={resource: role for resource, role in related.items() if role},
    )
