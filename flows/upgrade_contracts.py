"""What we need of Prefect, done once: `weighbridge compat` runs these against newer releases of
everything.

Each needs `WEIGHBRIDGE_HOME` to be a folder of its own.
"""

import asyncio
import contextlib
import socket
from datetime import timedelta
from typing import Any

from weighbridge.core.service_addresses import HOST
from weighbridge.core.settings import Settings
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.flows import interrupted_runs, prefect_internals
from weighbridge.flows.prefect_server import prefect_api, server_inside


def a_flow_runs() -> None:
    """Run a flow of ours with a stage, which is recorded with its artifacts, and one that fails
    with the line of a known error.
    """
    with prefect_api(Settings()):
        from prefect.client.orchestration import get_client

        from weighbridge.core.errors import GateFailed
        from weighbridge.flows.prefect_adapter import publish_weighing, release_flow, run_stage

        @release_flow(name="contract", flow_run_name="good")
        def good() -> int:
            value = run_stage(
                "stage", lambda: StageOutcome(1, reused=False, why="not run before", seconds=0.1)
            ).value
            publish_weighing("# Report", [{"candidate": "one"}], b"", "contract")
            return value

        @release_flow(name="contract", flow_run_name="bad")
        def bad() -> None:
            raise GateFailed("doing this", "it is worse")

        assert good() == 1, "the flow gives another value than its function"
        state: Any = bad(return_state=True)
        assert state.is_failed(), f"a failed gate leaves the flow {state.type}"
        assert state.message == "doing this: it is worse", (
            f"a failed gate is told as: {state.message}"
        )
        with get_client(sync_client=True) as client:
            flow_runs = client.request("POST", "/flow_runs/filter", json={}).json()
            artifacts = client.request("POST", "/artifacts/filter", json={}).json()
        recorded = {run["name"]: run["state_type"] for run in flow_runs}
        assert recorded == {"good": "COMPLETED", "bad": "FAILED"}, (
            f"the runs are recorded as {recorded}"
        )
        # Report, table and chart.
        assert len(artifacts) == 3, f"{len(artifacts)} artifacts of 3 are recorded"


def the_names_inside_prefect_are_there() -> None:
    """Take all that `prefect_internals` takes from inside Prefect; without it, a start is slow."""
    settings = Settings()
    (settings.home / "prefect").mkdir(parents=True)
    prefect_internals.poll_seldom()
    prefect_internals.writers_wait()
    with (
        contextlib.closing(socket.create_server((HOST, 0))) as listener,
        server_inside(settings, listener),
    ):
        from prefect import flow
        from prefect.client.orchestration import get_client

        contract = flow(name="contract")(lambda: 1)
        assert contract() == 1, "the flow gives another value"
        with get_client(sync_client=True) as client:
            planned = client.create_flow_run(contract)
            prefect_internals.carry_out(contract, planned.id)
            state = client.read_flow_run(planned.id).state
        assert state, "a planned run has no state"
        assert state.is_completed(), f"a planned run is {state}"
        assert interrupted_runs.mark_interrupted() == [], "this process counts as dead"


def a_schedule_is_planned() -> None:
    """Make a deployment with a schedule, which gets flow runs planned, and change it, which gets
    them planned anew.
    """
    with prefect_api(Settings()):
        planned = asyncio.run(_plan())
    assert planned[0] > 0, "no run was planned"
    assert planned[0] == planned[1], (
        f"{planned[0]} runs were planned, and {planned[1]} after the deployment changed"
    )


async def _plan() -> list[int]:
    """Do what Prefect's server does with a new deployment and with a changed one.

    Returns:
        How many runs each plans.
    """
    from prefect.server import models
    from prefect.server.database import provide_database_interface
    from prefect.server.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
    from prefect.server.schemas.core import Deployment, Flow
    from prefect.server.schemas.schedules import IntervalSchedule

    schedule = DeploymentScheduleCreate(
        schedule=IntervalSchedule(interval=timedelta(minutes=10)), active=True
    )
    flows: Any = models.flows  # Prefect's own decorator loses their types
    deployments: Any = models.deployments
    counts = []
    async with provide_database_interface().session_context(begin_transaction=True) as session:
        flow = await flows.create_flow(session=session, flow=Flow(name="contract"))
        new_deployment = Deployment(
            name="contract", flow_id=flow.id, schedules=[schedule.model_dump()]
        )
        deployment = await deployments.create_deployment(session=session, deployment=new_deployment)
        assert deployment is not None
        for tag in ("new", "changed"):
            change = DeploymentUpdate(tags=[tag])
            await deployments.update_deployment(
                session, deployment_id=deployment.id, deployment=change
            )
            counts.append(
                len(await deployments.schedule_runs(session, deployment_id=deployment.id))
            )
    return counts


def the_run_forms_are_made() -> None:
    """Make the schema of every deployment's parameters, which Prefect shows as a form."""
    import yaml
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    from weighbridge.core.paths import PACKAGE

    for deployment in yaml.safe_load((PACKAGE / "prefect.yaml").read_text())["deployments"]:
        schema = parameter_schema(load_flow_from_entrypoint(deployment["entrypoint"]))
        assert schema.type == "object", f"{deployment['name']} has no form"
