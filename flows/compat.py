"""Compat: once a week, what would the newest releases break?"""

from typing import Annotated, Any

from pydantic import Field

from weighbridge.compat.check import Options, check
from weighbridge.compat.locked_environments import locked_environments
from weighbridge.core.errors import GateFailed
from weighbridge.core.workspace import Workspace
from weighbridge.flows.prefect_adapter import publish_report, release_flow


@release_flow(name="compat", flow_run_name="compat")
def compat(
    environments: Annotated[
        tuple[str, ...], Field(description="`control`, or as their locks are called; empty: all.")
    ] = (),
    only: Annotated[tuple[str, ...], Field(description="Packages that move; empty: all.")] = (),
    minutes: Annotated[float, Field(description="After them nothing new is begun.")] = 60.0,
) -> Any:
    """Install the newest release of everything in throw-away environments and run the contracts of
    this tree there.

    Keeps the table and the text for an issue as artifacts; fails when something would break.
    """
    from prefect.states import Completed

    report = check(
        locked_environments(environments),
        Options(only=only, minutes=minutes),
        Workspace().settings.cache,
    )
    publish_report(
        "compat", report.markdown(), report.rows(), "What the newest releases would break"
    )
    if report.breaks:
        raise GateFailed("checking the newest releases", report.headline())
    return Completed(message=report.headline())
