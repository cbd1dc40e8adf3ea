"""A process that runs a flow of five tasks.

Usage: ``python -m tests.flows.five_tasks NAME SECONDS [FOLDER OWNER]``: name of the run, seconds
of each task; with the others its services begin warm (`tests.warm`).
"""

import contextlib
import sys
import time
from pathlib import Path

from weighbridge.core.settings import Settings
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.flows.prefect_server import prefect_api


def main(name: str, seconds: str, *services: str) -> None:
    """Run the flow; tell on stdout when a task begins."""
    with contextlib.ExitStack() as stack:
        if services:
            from tests.warm.services import WarmServices

            folder, owner = services
            stack.enter_context(WarmServices(Path(folder), int(owner)))
        stack.enter_context(prefect_api(Settings()))
        # Only now: it imports Prefect.
        from weighbridge.flows.prefect_adapter import release_flow, run_stage

        def stage() -> StageOutcome[int]:
            print("running", flush=True)
            time.sleep(float(seconds))
            return StageOutcome(1, False, "not run before", 0.1)

        @release_flow(name="release", flow_run_name=name)
        def release() -> None:
            for number in range(5):
                run_stage(f"stage-{number}", stage)

        release()


if __name__ == "__main__":
    main(*sys.argv[1:])
