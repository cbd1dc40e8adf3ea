"""The ledger: experiment `weighbridge.deployments`, one run per rollout."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from registry.connection import Connection
from registry.runs import NOTE, OWNER, SOURCE, owner

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

EXPERIMENT = "weighbridge.deployments"
_STATUS = {"serving": "FINISHED", "failed": "FAILED", "rolled back": "FAILED", "interrupted": "KILLED"}


@dataclass(frozen=True)
class Rollout:
    """One entry."""

    id: str
    target: str
    name: str
    version: str
    previous: str
    """Version that served before; empty for none."""
    trigger: str
    """What asked for it: `run`, `promote`, `rollback`, `webhook`, …"""
    outcome: str
    """`begun`, then `serving`, `failed`, `rolled back` or `interrupted`."""
    detail: str
    evidence: Mapping[str, str]
    digests: Mapping[str, str]
    began: float
    ended: float | None


@dataclass(frozen=True)
class Intent:
    """What a rollout is about to do."""

    target: str
    name: str
    version: str
    previous: str = ""
    trigger: str = "run"
    evidence: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def begin(connection: Connection, intent: Intent) -> Rollout:
    """Write down a rollout before it is tried."""
    experiment_id = connection.experiment(EXPERIMENT)
    before = f" (was {intent.previous})" if intent.previous else ""
    tags = {
        "target": intent.target, "model": intent.name, "version": intent.version, "previous": intent.previous,
        "trigger": intent.trigger, "outcome": "begun", "evidence": json.dumps(dict(intent.evidence)),
        "digests": json.dumps(dict(intent.digests)), OWNER: owner(), SOURCE: "weighbridge",
        NOTE: f"**{intent.name} {intent.version}**{before} on target `{intent.target}`, asked for by {intent.trigger}.",
    }  # fmt: skip
    with connection.doing(f"writing the rollout to '{intent.target}' into the ledger"):
        name = f"{intent.target}: {intent.name} {intent.version}"
        run = connection.client.create_run(experiment_id, run_name=name, tags={k: v for k, v in tags.items() if v})
        return _rollout(run)


def finish(connection: Connection, rollout: Rollout, outcome: str, detail: str = "") -> None:
    """Write down how it ended: `serving`, `failed`, `rolled back` or `interrupted`."""
    with connection.doing(f"writing the end of the rollout to '{rollout.target}' into the ledger"):
        connection.client.set_tag(rollout.id, "outcome", outcome)
        if detail:
            connection.client.set_tag(rollout.id, "detail", detail[:5000])
        connection.client.log_metric(rollout.id, "seconds", time.time() - rollout.began)
        connection.client.set_terminated(rollout.id, _STATUS.get(outcome, "FINISHED"))


def history(connection: Connection, target: str, limit: int = 50) -> list[Rollout]:
    """The rollouts of a target, newest first."""
    experiment_id = connection.known_experiment(EXPERIMENT)
    if experiment_id is None:
        return []
    with connection.doing(f"reading the ledger of '{target}'"):
        found = connection.client.search_runs(
            [experiment_id], f"tags.target = '{target}'", max_results=limit, order_by=["attributes.start_time DESC"]
        )
        return [_rollout(run) for run in found]


def _rollout(run: "MlflowRun") -> Rollout:
    tags = run.data.tags
    return Rollout(
        id=run.info.run_id,
        target=tags.get("target", ""),
        name=tags.get("model", ""),
        version=tags.get("version", ""),
        previous=tags.get("previous", ""),
        trigger=tags.get("trigger", ""),
        outcome=tags.get("outcome", ""),
        detail=tags.get("detail", ""),
        evidence=json.loads(tags.get("evidence", "{}")),
        digests=json.loads(tags.get("digests", "{}")),
        began=run.info.start_time / 1000,
        ended=run.info.end_time / 1000 if run.info.end_time else None,
    )
