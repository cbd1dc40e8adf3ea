"""Monitor: does what serves still answer as it did when it was weighed? Two falls in a row go back
by themselves.
"""

import logging
import time
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from weighbridge.core.errors import GateFailed, WeighbridgeError
from weighbridge.core.files import replace_text
from weighbridge.core.workspace import Workspace
from weighbridge.flows.events import announce, rolled_back
from weighbridge.flows.prefect_adapter import release_flow
from weighbridge.flows.redeploy import binding_of
from weighbridge.registry import Binding, Registry, Version
from weighbridge.rollout import monitor as checks
from weighbridge.rollout import operations, probe
from weighbridge.rollout import reconcile as work
from weighbridge.rollout.champion import find_measured
from weighbridge.rollout.managed_target import ManagedTarget
from weighbridge.rollout.monitor import MonitorCheck
from weighbridge.rollout.sequential_test import Judgement
from weighbridge.serving.gateway.metrics import since
from weighbridge.serving.targets.base import Revision

logger = logging.getLogger("weighbridge.monitor")

KEPT = 50


class MonitorLog(BaseModel):
    """What was seen at a target, beside its record."""

    checks: list[MonitorCheck] = []
    server: str = ""
    counters: dict[str, float] = {}


@release_flow(name="monitor", flow_run_name="monitor")
def monitor(
    target: Annotated[
        str, Field(description="As in `weighbridge status`; empty: every target.")
    ] = "",
) -> Any:
    """Ask live endpoints their probe questions, and note that and the gateway's figures in MLflow.

    A version that fell below the recipe's floor twice in a row is taken back: the alias names the
    one before.
    """
    from prefect.states import Completed

    workspace = Workspace()
    registry = Registry.connect(workspace.settings)
    bindings = [binding_of(target, registry)] if target else registry.bindings()
    outcomes = {binding.target: _one(binding, registry, workspace) for binding in bindings}
    words = "; ".join(f"{name}: {told}" for name, (_, told) in outcomes.items())
    if not all(well for well, _ in outcomes.values()):
        raise GateFailed("monitoring", words)
    return Completed(message=words or "no targets")


def _one(binding: Binding, registry: Registry, workspace: Workspace) -> tuple[bool, str]:
    """Whether the target is well, and what was found."""
    try:
        return look(binding, registry, workspace)
    except WeighbridgeError as exc:
        logger.warning("%s: %s", binding.target, exc)
        return False, str(exc)


def look(binding: Binding, registry: Registry, workspace: Workspace) -> tuple[bool, str]:
    """One look at one target; goes back if it is the second fall in a row.

    Raises:
        WeighbridgeError: it cannot be looked at, or not gone back.
    """
    managed = work.managed_target_of(binding, workspace)
    record = managed.load_state()
    if record.current is None:
        return True, "nothing serves here"
    if record.rollout is not None:
        return True, "a rollout is under way: it judges by itself"
    version = registry.version(record.current.release.name, record.current.release.version)
    judged = _ask(managed, record.current, version, registry)
    log = _read(managed)
    seen = {**judged.evidence, **_traffic_figures(managed, record.current, log)}
    check = MonitorCheck(version=version.version, verdict=judged.verdict, at=time.time())
    log.checks = [*log.checks, check][-KEPT:]
    _write(managed, log)
    registry.note(version, binding.target, {**seen, **_as_number(judged)}, int(check.at))
    logger.info(
        "%s: version %s: %s: %s", binding.target, version.version, judged.verdict, judged.why
    )
    if checks.fallen(log.checks, version.version):
        return False, _back(binding, version, judged, registry, workspace)
    return judged.verdict in (
        "pass",
        "inconclusive",
    ), f"version {version.version}: {judged.verdict}: {judged.why}"


def _ask(
    managed: ManagedTarget, current: Revision, version: Version, registry: Registry
) -> Judgement:
    champion = find_measured(registry, version)
    if champion is None:
        return Judgement(verdict="inconclusive", why="it was never weighed", evidence={})
    args, measurement = managed.args.monitor, champion.measurement
    questions = probe.questions_of(measurement, managed.workspace.store, args.questions)
    url, headers = managed.target.probe_endpoint(current)
    return checks.check(
        url,
        measurement,
        questions,
        args.floor,
        metric=args.metric,
        max_tokens=measurement.max_new_tokens,
        headers=headers,
    )


def _traffic_figures(
    managed: ManagedTarget, current: Revision, log: MonitorLog
) -> dict[str, float]:
    """Return what was counted since the last look, and keep today's counters in the log."""
    counters = managed.target.traffic_figures(current)
    before = log.counters if log.server == current.name else {}
    log.server, log.counters = current.name, counters
    if not counters:
        return {}
    return {f"gateway.{key}": value for key, value in since(before, counters).items()}


def _as_number(judged: Judgement) -> dict[str, float]:
    """A verdict as a curve: 1 well, 0 fallen; nothing where it cannot be told."""
    return {"well": float(judged.verdict == "pass")} if judged.verdict in ("pass", "fail") else {}


def _back(
    binding: Binding, version: Version, judged: Judgement, registry: Registry, workspace: Workspace
) -> str:
    """The alias names the version before again, and that one serves.

    Where the alias has moved on meanwhile, somebody has decided already.
    """
    desired = registry.desired_version(binding.model)
    if desired is None or desired.version != version.version:
        return f"version {version.version} fell twice in a row; the alias has moved on"
    before = operations.rollback_version(binding.target, workspace)
    logger.warning(
        "%s: version %s fell twice in a row: back to %s", binding.target, version.version, before
    )
    registry.promote(registry.version(binding.model, before))
    announce(rolled_back(binding.target, binding.model, version.version, before, judged.why))
    result = work.reconcile(binding, registry, workspace, "monitor", force=True)
    return f"version {version.version} fell twice in a row ({judged.why}); back to {before}: {result.detail}"


def _read(managed: ManagedTarget) -> MonitorLog:
    try:
        return MonitorLog.model_validate_json((managed.folder / "checks.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return MonitorLog()


def _write(managed: ManagedTarget, log: MonitorLog) -> None:
    replace_text(managed.folder / "checks.json", log.model_dump_json())
