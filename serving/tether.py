"""Run a command that cannot outlive its parent and holds none of its parent's sockets.

Called as a script, by any Python, with nothing but the standard library::

    python -I tether.py [--await-port HOST PORT] -- COMMAND …

The command takes this process's place, so no process is added. With ``--await-port`` it starts once
nobody listens there any more: a successor loads everything it can while the one before still serves.
"""

import ctypes
import os
import signal
import socket
import sys
import time

_PR_SET_PDEATHSIG = 1
_POLL = 0.02


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as the thread that started it ends."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    die_with_parent()
    # A SIGTERM to its parent's group is the parent's to act on: it drains first and ends the command then.
    if os.getpgrp() != os.getpid():
        os.setsid()
    os.closerange(3, 4096)
    if options:
        host, port = options[1], int(options[2])
        while not port_is_free(host, port):
            time.sleep(_POLL)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
