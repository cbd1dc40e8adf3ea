"""Run in this process the flow run that the worker of a process pool was given.

Usage: ``python -m weighbridge.flows.stage_process``, the command of our process pools. Left to
itself, Prefect's worker starts a process that looks for the flow's code and only then becomes the
one that runs it: both import Prefect, which is most of what a short stage takes on a pool.
"""

import contextlib
import os
import runpy
from typing import Final

ENGINE: Final = "prefect.engine"
"""It learns of the run from its environment."""


def main() -> None:
    # As Prefect's own process has one: what is typed at the worker's terminal is for the worker,
    # which ends the run in an order of its own.
    with contextlib.suppress(PermissionError):  # started by a shell, it has one
        os.setsid()
    runpy.run_module(ENGINE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
