"""Reconcile: every target serves what its model's alias names."""

import logging
from typing import Any

from weighbridge.core.errors import GateFailed, WeighbridgeError
from weighbridge.core.workspace import Workspace
from weighbridge.flows.prefect_adapter import release_flow
from weighbridge.registry import Binding, Registry
from weighbridge.rollout import reconcile as work

logger = logging.getLogger(__name__)


@release_flow(name="reconcile", flow_run_name="reconcile")
def reconcile(trigger: str = "reconcile") -> Any:
    """Let every target serve the version that `champion` names.

    One that fails does not stop the others.
    """
    from prefect.states import Completed

    workspace = Workspace()
    registry = Registry.connect(workspace.settings)
    outcomes = {
        binding.target: _reconcile_one(binding, registry, workspace, trigger)
        for binding in registry.bindings()
    }
    failed = [f"{target}: {detail}" for target, (well, detail) in outcomes.items() if not well]
    if failed:
        raise GateFailed("reconciling", "; ".join(failed))
    details = [f"{target}: {detail}" for target, (_, detail) in outcomes.items()]
    return Completed(message="; ".join(details) or "no targets")


def _reconcile_one(
    binding: Binding, registry: Registry, workspace: Workspace, trigger: str
) -> tuple[bool, str]:
    """Reconcile one target; return whether it went well, and what became of it."""
    try:
        result = work.reconcile(binding, registry, workspace, trigger)
    except WeighbridgeError as exc:
        logger.warning("%s: %s", binding.target, exc)
        return False, str(exc)
    logger.info("%s: %s, %s", binding.target, result.action, result.detail)
    return result.action != "failed", result.detail
