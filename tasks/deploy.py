"""A release at its target: what serves goes on serving until the new one has answered."""

import logging
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from core.plugins import PluginArgs, load
from core.workspace import Workspace
from serving.targets.base import Release, Serving, Target, TargetArgs
from serving.targets.local import LocalArgs

VERSION: Final = 1

logger = logging.getLogger("weighbridge.deploy")


class DeployArgs(BaseModel):
    """Where the winner is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$",
        description="Name of the place, as `weighbridge ask NAME` knows it; empty: the recipe's name.",
    )
    target: Annotated[SerializeAsAny[TargetArgs], PluginArgs("target")] = Field(
        default_factory=LocalArgs, description="What kind of place it is, and its address."
    )
    promote: Literal["always", "first", "never"] = Field(
        "always",
        description="When the winner serves without being asked: always, where nothing serves yet, or never; "
        "otherwise it waits as `challenger` until somebody moves the alias `champion`.",
    )


def deploy(release: Release, args: DeployArgs, workspace: Workspace) -> Serving:
    """Serve `release` at its target. Does nothing, and says so, where it is served already.

    Raises:
        BadInput: the address belongs to somebody else.
        Unavailable: it did not answer; what served before serves again.
    """
    target: Target = load("target", args.target.kind)
    return target.deploy(args.name or release.name, args.target, release, workspace.settings.home)


def serving_already(release: Release, args: DeployArgs, workspace: Workspace) -> Serving | None:
    """What the target says, if it serves this very release and answers at the address that is asked for."""
    target: Target = load("target", args.target.kind)
    return target.serves(args.name or release.name, args.target, release, workspace.settings.home)


def status(workspace: Workspace) -> dict[str, Serving]:
    """What every target of this machine serves now."""
    local: Any = load("target", "local")
    home = workspace.settings.home
    return {name: local.status(name, home) for name in local.targets(home)}


def down(workspace: Workspace, names: list[str] | None = None) -> list[str]:
    """Stop serving at the named targets (all, when None) and leave no process of them; returns those stopped."""
    local: Any = load("target", "local")
    home = workspace.settings.home
    stopped = [name for name in local.targets(home) if names is None or name in names]
    for name in stopped:
        local.down(name, home)
    return stopped
