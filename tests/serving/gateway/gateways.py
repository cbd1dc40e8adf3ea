"""A gateway in a test: what it is asked for, and what it answers."""

import contextlib
import json
from collections import Counter

import httpx

from tests.serving.gateway.upstreams import ASK, Upstream
from tests.waiting import until
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.haproxy import NotAnswering
from weighbridge.serving.gateway.models import Front, GatewayArgs, Route
from weighbridge.serving.supervisor import Supervisor


def front(
    port: int,
    *servers: Upstream,
    target: str = "demo",
    weights: tuple[int, ...] = (),
    **args: object,
) -> Front:
    routes = [
        Route(name=upstream.name, port=upstream.port, weight=weight, operations=upstream.operations)
        for upstream, weight in zip(servers, weights or [100] * len(servers), strict=True)
    ]
    return Front(
        target=target, port=port, args=GatewayArgs.model_validate(args), routes=tuple(routes)
    )


def draining(desired: Front, name: str) -> Front:
    routes = [
        r.model_copy(update={"draining": True, "weight": 0}) if r.name == name else r
        for r in desired.routes
    ]
    return desired.model_copy(update={"routes": tuple(routes)})


def ask(port: int, path: str = ASK, **headers: str) -> httpx.Response:
    return httpx.post(
        f"http://127.0.0.1:{port}{path}", json={}, headers=headers, trust_env=False, timeout=20
    )


def shares(port: int, count: int = 60, **headers: str) -> Counter[str]:
    return Counter(ask(port, **headers).json()["by"] for _ in range(count))


def workers(gateway: Gateway) -> list[int]:
    return gateway._master.workers()


def has_another_worker(gateway: Gateway, pid: int) -> bool:
    """Whether a worker runs that is not this one; the master that lost it ends as well, and may do
    so while it is asked.
    """
    with contextlib.suppress(NotAnswering):
        pids = workers(gateway)
        return bool(pids) and pid not in pids
    return False


def master_of(gateway: Gateway) -> int:
    state = Supervisor(gateway.folder.parents[1]).state("gateway")
    assert state
    return state.pid


def ask_and_log(gateway: Gateway, port: int, **headers: str) -> httpx.Response:
    """Ask, and return the answer once its line is in the log.

    haproxy drops a line that one thread has for the log while another is at it: requests that come
    one after the other leave every line only where each waits for that of the one before.
    """
    before = len(entries(gateway))
    answer = ask(port, **headers)
    until(lambda: len(entries(gateway)) > before, otherwise=gateway.log.read_text)
    return answer


def entries(gateway: Gateway) -> list[dict[str, object]]:
    return [
        json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")
    ]
