"""A process that works in the company of a shadow run, and tells on stdout how that went.

Usage: ``python -m tests.flows.shadowed_work SECONDS``: of the work. Lines of its own begin with
`TOLD`, since those of logging may be among them.
"""

import logging
import os
import sys
import time

from weighbridge.flows.redeploy import state_of
from weighbridge.flows.shadow_run import ShadowedJob, with_shadow_run
from weighbridge.rollout.reconcile import ReconcileResult

TOLD = "told: "


def main(seconds: float) -> None:
    """Work so long; tell when it begins, how it ends, and whether it took longer than it should."""
    logging.basicConfig(level=logging.WARNING)
    began = time.monotonic()

    def work() -> ReconcileResult:
        print(f"{TOLD}working", flush=True)
        time.sleep(seconds)
        return ReconcileResult("deployed", "7 serves", "7")

    action = with_shadow_run(ShadowedJob("demo", "webhook"), work, state_of).action
    late = time.monotonic() - began > seconds + 3
    print(f"{TOLD}{action}\n{TOLD}{'late' if late else 'in time'}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(float(sys.argv[1]))
