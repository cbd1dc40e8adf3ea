"""Serves a Bento as a container's first process, and ends with 0 when it is asked to end.

A script of the standard library alone: the engine's own Python runs it in our images. BentoML gets
the signal once its child processes are known, and is waited for; whatever is left is the kernel's
to end, with the container.

Usage: ``python -I bento_container.py [FOLDER]``, by default /bento
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

ASKED = (signal.SIGTERM, signal.SIGINT)
KEEP_ALIVE_SECONDS = 3900
"""For which a connection stays open without a request: longer than gateways keep one, which is an
hour as a rule. After BentoML's own five seconds requests would meet the end of their connection.
"""


def main(arguments: list[str]) -> int:
    """Return 0 where it ended because it was asked to, else BentoML's own status."""
    folder = Path(arguments[0] if arguments else "/bento")
    if not (folder / "bento.yaml").is_file():
        print(f"error: serving {folder}: no Bento is there; mount one", file=sys.stderr)
        return 2
    asked: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: object) -> None:
        asked.append(number)
        for child in children:
            child.terminate()

    # Before the child is there: a signal in between must not be lost.
    for number in ASKED:
        signal.signal(number, end)
    children.append(subprocess.Popen(_command(folder)))
    if asked:
        children[0].terminate()
    status = _status_of(children[0].pid)
    if asked and status in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
        return 0
    # BentoML ends with 0 as well where the engine has ended, or never begun.
    return abs(status) or 1


def _command(folder: Path) -> list[str]:
    port = os.environ.get("PORT", "3000")
    bentoml = Path(sys.executable).with_name("bentoml")
    address = ["--host", "0.0.0.0", "--port", port]
    keep_alive = ["--timeout-keep-alive", str(KEEP_ALIVE_SECONDS)]
    return [str(bentoml), "serve", str(folder), *address, *keep_alive]


def _status_of(child: int) -> int:
    """Wait for a child, and for whatever else ends meanwhile; return the child's status."""
    while True:
        # Of any: the first process of a container inherits those that nobody else waits for.
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
