"""Start the engine that standard input describes, and wait to be killed::

    python -m weighbridge.conformance.killed_parent < DESCRIPTION

where DESCRIPTION is a JSON object with `argv`, `env`, `log` and `cwd`.
"""

import json
import sys
import threading
from pathlib import Path

from weighbridge.core.processes import Process


def main() -> None:
    """Print the engine's process id, and never end."""
    description = json.load(sys.stdin)
    log, folder = Path(description["log"]), Path(description["cwd"])
    # On the main thread: the kernel ends a child with the thread that started it.
    process = Process("engine", description["argv"], log=log, cwd=folder, env=description["env"])
    print(process.pid, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
