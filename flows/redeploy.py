"""Redeploy: one target serves what the alias `champion` names."""

import logging
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from weighbridge.core.errors import BadInput, GateFailed
from weighbridge.core.workspace import Workspace
from weighbridge.flows.prefect_adapter import release_flow
from weighbridge.registry import Binding, Registry
from weighbridge.rollout import reconcile as work
from weighbridge.rollout.reconcile import ReconcileResult

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

logger = logging.getLogger(__name__)

NAME = "redeploy"
TITLE = "redeploy {target}"


@release_flow(name=NAME, flow_run_name=TITLE)
def redeploy(
    target: Annotated[str, Field(description="As in `weighbridge status`.")],
    trigger: Annotated[str, Field(description="What the ledger says asked for it.")] = "prefect",
) -> Any:
    """Let one target serve the version that the alias `champion` names, if it does not yet."""
    workspace = Workspace()
    registry = Registry.connect(workspace.settings)
    return state_of(work.reconcile(binding_of(target, registry), registry, workspace, trigger))


def binding_of(target: str, registry: Registry) -> Binding:
    """Return the binding of a target.

    Raises:
        BadInput: no model is served there.
    """
    bindings = {binding.target: binding for binding in registry.bindings()}
    if target not in bindings:
        known = ", ".join(bindings) or "none"
        raise BadInput(
            f"looking for target '{target}'", f"no model says that it serves there (known: {known})"
        )
    return bindings[target]


def state_of(result: ReconcileResult) -> "State[Any]":
    """Return how a flow run ends: as Failed where something was tried and did not work."""
    from prefect.states import Completed, Failed

    if result.action == "failed":
        error = GateFailed(
            "redeploying", result.detail, f"version {result.version or 'none'} goes on serving"
        )
        return Failed(message=str(error), data=error)
    names = {
        "deployed": "Deployed",
        "nothing": "NothingToDo",
        "kept": "Kept",
        "interrupted": "Interrupted",
    }
    return Completed(name=names[result.action], message=result.detail)
