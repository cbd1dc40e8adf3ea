"""What a Bento in a pod tells of the requests that are under way."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from weighbridge.serving import request_watch
from weighbridge.serving.request_watch import RequestWatch

ASK = "/v1/completions"


class Gauge:
    """What is under way, as Prometheus would be told."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def set(self, value: float) -> None:
        self.values.append(value)


class Engine:
    """Answers each request by what its path says, and one token as often as it is allowed to."""

    def __init__(self) -> None:
        self.well = True
        self.asked = 0
        self.go_on = asyncio.Event()

    async def asks(self) -> bool:
        self.asked += 1
        return self.well

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        status = 503 if "fails" in scope["path"] else 200
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: x\n\n", "more_body": True})
        if "waits" in scope["path"]:
            await self.go_on.wait()
        if "breaks" in scope["path"]:
            raise ConnectionError
        await send({"type": "http.response.body", "body": b""})


Scenario = Callable[[httpx.AsyncClient, Engine, Gauge], Awaitable[None]]


def play(scenario: Scenario, peer: str = "127.0.0.1") -> None:
    """Run a scenario against a watched engine."""

    async def run() -> None:
        engine, gauge = Engine(), Gauge()
        app = RequestWatch(engine, revision="7", asks=engine.asks, gauge=lambda: gauge)
        transport = httpx.ASGITransport(app, client=(peer, 1), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
            await scenario(client, engine, gauge)

    asyncio.run(run())


async def requests(client: httpx.AsyncClient, after: int | str = 0) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get("/requests", params={"after": after})).json()
    return answer


def test_a_stream_is_under_way_until_its_last_byte() -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine, gauge: Gauge) -> None:
        waiting = asyncio.create_task(client.post("/v1/waits"))
        while not gauge.values:
            await asyncio.sleep(0)
        assert (await requests(client))["in_flight"] == 1
        engine.go_on.set()
        assert (await waiting).headers["X-Weighbridge-Version"] == "7"
        assert (await requests(client))["in_flight"] == 0
        assert gauge.values == [1, 0]

    play(scenario)


def test_each_request_that_ended_is_told_once_with_how_it_ended() -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine, gauge: Gauge) -> None:
        await client.post(ASK, headers={"X-Weighbridge-Version": "7"})
        await client.post("/v1/fails")
        await client.post("/v1/breaks")
        await client.get("/livez")
        told = await requests(client)
        assert [one["status"] for one in told["ended"]] == [200, 503, 200]
        assert [one["truncated"] for one in told["ended"]] == [False, False, True]
        assert [one["pinned"] for one in told["ended"]] == [True, False, False]
        assert [one["stream"] for one in told["ended"]] == [True, True, True]
        assert [one["number"] for one in (await requests(client, after=2))["ended"]] == [3]
        assert (await requests(client, after="no number"))["ended"] == []

    play(scenario)


def test_a_client_that_hangs_up_is_no_fault_of_the_engine() -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine, gauge: Gauge) -> None:
        async def left(scope: Any, receive: Any, send: Any) -> None:
            await receive()

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            """Nobody reads it."""

        watch = RequestWatch(left, revision="7", asks=engine.asks, gauge=lambda: gauge)
        scope = {"type": "http", "method": "POST", "path": ASK, "headers": []}
        await watch(scope, receive, send)
        (ended,) = watch._figures({"query_string": b"after=0"})["ended"]
        assert (ended["status"], ended["aborted"], ended["truncated"]) == (499, True, False)

    play(scenario)


def test_it_is_ready_once_a_real_answer_has_come() -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine, gauge: Gauge) -> None:
        engine.well = False
        assert (await client.get("/readyz")).status_code == 503
        engine.well = True
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        # What has just answered is not asked again.
        assert engine.asked == 2

    play(scenario)


@pytest.mark.parametrize(
    ("method", "path", "proves"),
    [("POST", ASK, True), ("POST", "/v1/fails", False), ("GET", "/v1/models", False)],
)
def test_a_clients_answer_proves_it_too_and_an_error_does_not(
    method: str, path: str, proves: bool
) -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine, gauge: Gauge) -> None:
        engine.well = False
        await client.request(method, path)
        assert (await client.get("/readyz")).status_code == (200 if proves else 503)

    play(scenario)


def test_a_busy_engine_stays_ready_and_one_that_hangs_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_watch, "FRESH_SECONDS", 0.0)

    async def scenario(client: httpx.AsyncClient, engine: Engine, gauge: Gauge) -> None:
        waiting = asyncio.create_task(client.post("/v1/waits"))
        while not gauge.values:
            await asyncio.sleep(0)
        # A question of ours would wait behind the one that is being answered.
        engine.well = False
        assert (await client.get("/readyz")).status_code == 200
        monkeypatch.setattr(request_watch, "BUSY_SECONDS", 0.0)
        assert (await client.get("/readyz")).status_code == 503
        engine.go_on.set()
        await waiting

    play(scenario)


def test_while_it_drains_connections_are_closed_as_their_answers_end() -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine, gauge: Gauge) -> None:
        assert "connection" not in (await client.post(ASK)).headers
        assert (await client.post("/drain")).json() == {"draining": True}
        assert (await client.post(ASK)).headers["connection"] == "close"

    play(scenario)


def test_only_the_pod_itself_may_drain_it() -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine, gauge: Gauge) -> None:
        await client.post("/drain")
        assert not (await requests(client))["draining"]

    play(scenario, peer="10.0.0.7")


def test_what_all_came_to_is_added_up() -> None:
    async def scenario(client: httpx.AsyncClient, engine: Engine, gauge: Gauge) -> None:
        assert (await requests(client))["totals"] == {}
        for path in ("/v1/well", "/v1/well", "/v1/fails", "/metrics"):
            await client.post(path, content=b"x" * 1000)
        totals = (await requests(client))["totals"]
        assert (totals["responses_2xx"], totals["responses_5xx"]) == (2, 1)
        assert 3000 < totals["bytes_in"] < 4000
        assert totals["seconds_total"] > 0

    play(scenario)
