"""Ports: which are free, which are the gateway's own, and who has one that is not."""

import contextlib
import random
from collections.abc import Iterable

import psutil

from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings
from weighbridge.serving.gateway.models import Front
from weighbridge.serving.reaper import port_is_free

LOWEST, HIGHEST = 20_000, 32_000
"""Ports of our own choice: below those the kernel gives to outgoing connections, so that a restart
finds them free.
"""


def choose_metrics_port() -> int:
    """Return the port in the settings, or a free one where that is taken or not set."""
    port = Settings().metrics_port
    while not port or not port_is_free("127.0.0.1", port):
        port = random.randint(LOWEST, HIGHEST)
    return port


def check_port(front: Front, workers: Iterable[int]) -> None:
    """Refuse a port of somebody else's before anything is changed.

    Args:
        front: what is to listen there.
        workers: processes of the gateway's own.

    Raises:
        BadInput: the port is taken, or not this user's to listen at.
    """
    if port_is_free(front.host, front.port) or front.port in _ports_of(workers):
        return
    owner = _owner_of(front.port)
    taken = f"it is taken by {owner}" if owner else "it is taken"
    raise BadInput(
        f"listening at port {front.port} of {front.host} for {front.target}",
        f"{taken}, or not ours to listen at",
        "stop that, or choose another `port`",
    )


def _ports_of(processes: Iterable[int]) -> set[int]:
    ports: set[int] = set()
    with contextlib.suppress(psutil.Error):  # it has ended
        for pid in processes:
            connections = psutil.Process(pid).net_connections("tcp")
            ports |= {
                connection.laddr.port
                for connection in connections
                if connection.status == psutil.CONN_LISTEN
            }
    return ports


def _owner_of(port: int) -> str | None:
    """Return who listens at a port; None where the kernel does not let us know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            # psutil gives no process id where the socket is another user's.
            if listens and connection.laddr[1:2] == (port,) and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return None
