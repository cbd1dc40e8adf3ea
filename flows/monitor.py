"""Monitor: does what serves still answer as it did when it was weighed?

A version that falls twice in a row is rolled back without anybody asking for it.
"""

import logging
import time
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from weighbridge.core.errors import GateFailed, WeighbridgeError
from weighbridge.core.workspace import Workspace
from weighbridge.flows.events import announce, rolled_back
from weighbridge.flows.prefect_adapter import release_flow
from weighbridge.flows.redeploy import binding_of
from weighbridge.registry import Binding, Registry, Version
from weighbridge.rollout import monitor as checks
from weighbridge.rollout import operator_commands, probe, reconcile, target_operations
from weighbridge.rollout.champion import find_measured
from weighbridge.rollout.managed_target import ManagedTarget
from weighbridge.rollout.monitor import Evidence, MonitorCheck
from weighbridge.rollout.sequential_test import Judgement
from weighbridge.serving.targets.base import Revision
from weighbridge.serving.targets.records import CHECKS
from weighbridge.serving.traffic_figures import since

logger = logging.getLogger(__name__)

ALL_ROWS = 1_000_000
"""More than any measurement has."""
CHECKS_KEPT = 50
"""Checks remembered per target: more than two are needed only where some had no verdict."""


class MonitorLog(BaseModel):
    """What was seen at a target, kept with its records."""

    checks: list[MonitorCheck] = []
    server: str = Field("", description="Revision that the counters are of.")
    counters: dict[str, float] = Field({}, description="Of the gateway, at the last look.")
    asked: int = Field(0, description="Probe questions asked so far: the rows come in turn.")
    evidence: Evidence = Field(
        default_factory=Evidence, description="Carried for as long as one revision serves."
    )


@release_flow(name="monitor", flow_run_name="monitor")
def monitor(
    target: Annotated[
        str, Field(description="As in `weighbridge status`; empty: every target.")
    ] = "",
) -> Any:
    """Ask live endpoints their probe questions, and note that and the gateway's figures in MLflow.

    A version that fell below the recipe's floor twice in a row is rolled back: the alias names the
    one before.
    """
    from prefect.states import Completed

    workspace = Workspace()
    registry = Registry.connect(workspace.settings)
    bindings = [binding_of(target, registry)] if target else registry.bindings()
    outcomes = {
        binding.target: _look_or_say_why(binding, registry, workspace) for binding in bindings
    }
    summary = "; ".join(f"{name}: {detail}" for name, (_, detail) in outcomes.items())
    if not all(is_well for is_well, _ in outcomes.values()):
        raise GateFailed("monitoring", summary)
    return Completed(message=summary or "no targets")


def _look_or_say_why(
    binding: Binding, registry: Registry, workspace: Workspace
) -> tuple[bool, str]:
    """Return whether the target is well, and a sentence on it. Raise nothing: others come next."""
    try:
        return look(binding, registry, workspace)
    except WeighbridgeError as exc:
        logger.warning("%s: %s", binding.target, exc)
        return False, str(exc)


def look(binding: Binding, registry: Registry, workspace: Workspace) -> tuple[bool, str]:
    """Look at one target once; roll back if it is the second fall in a row.

    Returns:
        Whether it is well, and a sentence on it.

    Raises:
        WeighbridgeError: it can't be looked at, or not be rolled back.
    """
    managed = reconcile.managed_target_of(binding, workspace)
    state = managed.load_state()
    if state.current is None:
        return True, "nothing serves here"
    if state.rollout is not None:
        return True, "a rollout is under way: it judges by itself"
    version = registry.version(state.current.release.name, state.current.release.version)
    log = _read_log(managed)
    if log.server != state.current.name:
        # After each rollout from the beginning: what was seen of another says nothing of this one.
        log.server, log.counters, log.evidence = state.current.name, {}, Evidence()
    traffic = _traffic_figures(managed, state.current, log)
    judgement = checks.both(
        _judge(managed, state.current, version, registry, log, traffic),
        checks.judge_traffic(traffic, log.evidence, managed.args.monitor),
        managed.args.monitor,
    )
    gateway = {f"gateway.{key}": value for key, value in traffic.items()}
    figures = {**judgement.evidence, **gateway}
    check = MonitorCheck(version=version.version, verdict=judgement.verdict, at=time.time())
    log.checks = [*log.checks, check][-CHECKS_KEPT:]
    # Before MLflow is told: that it is away must not hide a fall.
    _write_log(managed, log)
    registry.log_monitoring(
        version, binding.target, {**figures, **_as_number(judgement)}, int(check.at)
    )
    detail = f"version {version.version}: {judgement.verdict}: {judgement.why}"
    logger.info("%s: %s", binding.target, detail)
    if checks.has_fallen(log.checks, version.version):
        return False, _roll_back(managed, binding, version, judgement, registry)
    return judgement.verdict in ("pass", "inconclusive"), detail


def _judge(
    managed: ManagedTarget,
    current: Revision,
    version: Version,
    registry: Registry,
    log: MonitorLog,
    traffic: Mapping[str, float],
) -> Judgement:
    champion = find_measured(registry, version)
    if champion is None:
        return Judgement(verdict="inconclusive", why="it was never weighed", evidence={})
    args, measurement = managed.args.monitor, champion.measurement
    rows = probe.questions_of(measurement, managed.workspace.store, ALL_ROWS)
    questions = checks.next_questions(rows, log.asked, args.questions)
    log.asked += len(questions)
    url, headers = managed.target.probe_endpoint(current)
    judgement = checks.check(
        url,
        measurement,
        questions,
        args.floor,
        evidence=log.evidence,
        rows=len(rows),
        metric=args.metric,
        max_tokens=measurement.max_new_tokens,
        headers=headers,
    )
    drift = checks.input_drift(traffic, rows)
    return judgement.model_copy(update={"evidence": {**judgement.evidence, **drift}})


def _traffic_figures(
    managed: ManagedTarget, current: Revision, log: MonitorLog
) -> dict[str, float]:
    """Return what was counted since the last look, and keep today's counters in the log."""
    figures = managed.target.traffic_figures(current)
    if not figures:
        # The next look goes on from the last one that learned something.
        return {}
    earlier, log.counters = log.counters, figures
    return since(earlier, figures)


def _as_number(judgement: Judgement) -> dict[str, float]:
    """Return a verdict as a point of a curve: 1 well, 0 fallen; nothing without a verdict."""
    if judgement.verdict not in ("pass", "fail"):
        return {}
    return {"well": float(judgement.verdict == "pass")}


def _roll_back(
    managed: ManagedTarget,
    binding: Binding,
    version: Version,
    judgement: Judgement,
    registry: Registry,
) -> str:
    """Let the alias name the version before again, and that one serve; return a sentence on it.

    Where the alias has moved on meanwhile, somebody has decided already.
    """
    desired = registry.desired_version(binding.model)
    if desired is None or desired.version != version.version:
        return f"version {version.version} fell twice in a row; the alias has moved on"
    previous = target_operations.version_before(managed)
    fell = f"version {version.version} fell twice in a row"
    logger.warning("%s: %s: back to %s", binding.target, fell, previous)
    # At once: what fell would serve on for as long as harm is being excluded.
    operator_commands.note_move(managed.records, previous, "rollback")
    # The alias first: until it has moved, the deployer would bring the fallen version back.
    registry.promote(registry.version(binding.model, previous))
    announce(rolled_back(binding.target, binding.model, version.version, previous, judgement.why))
    result = reconcile.reconcile(binding, registry, managed.workspace, "monitor", force=True)
    return f"{fell} ({judgement.why}); back to {previous}: {result.detail}"


def _read_log(managed: ManagedTarget) -> MonitorLog:
    # A log that is damaged is begun anew: it costs two more looks until a fall is acted on.
    try:
        return MonitorLog.model_validate_json(managed.records.read(CHECKS).content)
    except ValidationError:
        return MonitorLog()


def _write_log(managed: ManagedTarget, log: MonitorLog) -> None:
    managed.records.change(CHECKS, lambda _: log.model_dump_json().encode())
