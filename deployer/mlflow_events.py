"""MLflow's webhook as an event of Prefect's, for automations that wait for a registry to change."""

from weighbridge.deployer.webhook_receiver import Delivery
from weighbridge.flows.events import Announcement


def of_delivery(delivery: Delivery) -> Announcement:
    """MLflow's webhook as an event of Prefect's."""
    words = {key: str(delivery.data.get(key) or "") for key in ("name", "alias", "version")}
    related = {
        f"mlflow.model-version.{words['name']}.{words['version']}": "model-version"
        if words["version"]
        else "",
        f"mlflow.alias.{words['alias']}": "alias" if words["alias"] else "",
    }
    return Announcement(
        event=delivery.event,
        model=words["name"] or "unknown",
        payload=delivery.data,
        key=delivery.id,
        related={resource: role for resource, role in related.items() if role},
    )
