"""A Bento's own door: what BentoML's port passes to the engine, and how large."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from tests.serving.gateway.upstreams import ASK, Upstream, upstreams
from weighbridge.serving.bento_middleware import EnginePassthrough
from weighbridge.serving.client_requests import with_defaults

OPERATIONS = {f"POST {ASK}", "GET /health"}


@pytest.fixture(scope="module")
def engine() -> Iterator[Upstream]:
    with upstreams("7") as (upstream,):
        yield upstream


async def bentoml(scope: Any, receive: Any, send: Any) -> None:
    """BentoML's own application: it answers whatever gets to it."""
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def ask(
    engine: Upstream,
    method: str,
    path: str,
    sampling: Mapping[str, float] = MappingProxyType({}),
    **options: Any,
) -> httpx.Response:
    """Return the middleware's answer to one request."""

    async def answer() -> httpx.Response:
        url = f"http://127.0.0.1:{engine.port}"
        app = EnginePassthrough(bentoml, url, OPERATIONS, 1000, sampling, body_seconds=0.2)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bento") as client:
            try:
                return await client.request(method, path, **options)
            finally:
                await app._engine.close()

    return asyncio.run(answer())


def test_clients_reach_what_the_engine_declares_and_bentomls_own_paths(engine: Upstream) -> None:
    answer = ask(engine, "POST", f"{ASK}?x=1", json={}, headers={"Origin": "https://a.example"})
    assert answer.json() == {"by": "7"}
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert ask(engine, "GET", "/health").status_code == 200
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        assert ask(engine, "GET", path).status_code == 299


@pytest.mark.parametrize(
    "path",
    [
        *("/lora-adapters", "/slots", "/props", "/completion", "/%6cora-adapters", "//slots"),
        *(
            "/v1/%2e%2e/slots",
            "/v1/models/",
            "/SLOTS",
            "/slots;/livez",
            "/livez/",
            "/",
            "/docs.json",
        ),
    ],
)
def test_whatever_else_there_is_stays_closed(engine: Upstream, path: str) -> None:
    asked = len(engine.asked)
    for method in ("GET", "POST", "OPTIONS"):
        answer = ask(engine, method, path, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    assert ask(engine, "POST", "/livez").status_code == 404
    assert ask(engine, "GET", ASK).status_code == 404
    assert len(engine.asked) == asked


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ({"n": "ü"}, {"n": "ü", "temperature": 0.3, "top_p": 0.9}),
        ({"temperature": 1.5}, {"temperature": 1.5, "top_p": 0.9}),
        ({"temperature": None, "top_p": 1}, {"temperature": 0.3, "top_p": 1}),
        ([1], [1]),
    ],
)
def test_what_a_request_leaves_open_is_drawn_as_it_was_weighed(
    engine: Upstream, named: Any, asked: Any
) -> None:
    weighed = {"temperature": 0.3, "top_p": 0.9}
    assert ask(engine, "POST", ASK, weighed, json=named).is_success
    assert json.loads(engine.bodies[-1]) == asked


def test_what_is_no_json_or_not_drawn_goes_on_as_it_came(engine: Upstream) -> None:
    weighed = {"temperature": 0.3, "top_p": 0.9}
    for body in (b"no {JSON", b"", b"[" * 900):
        assert ask(engine, "POST", ASK, weighed, content=body).is_success
        assert engine.bodies[-1] == body
    assert with_defaults("POST /v1/embeddings", b"{}", weighed) == b"{}"
    assert ask(engine, "POST", ASK, content=b'{ "n":1}').is_success, "an engine that knows it"
    assert engine.bodies[-1] == b'{ "n":1}'


def test_a_body_too_large_or_too_slow_is_refused(engine: Upstream) -> None:
    async def chunks(count: int, pause: float) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 200
            await asyncio.sleep(pause)

    assert ask(engine, "POST", ASK, content=b"x" * 1000).status_code == 200
    asked = len(engine.asked)
    for content in (b"x" * 1001, chunks(6, 0)):
        answer = ask(engine, "POST", ASK, content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert ask(engine, "POST", ASK, content=chunks(5, 0.1)).status_code == 408
    assert len(engine.asked) == asked


def test_a_websocket_is_closed(engine: Upstream) -> None:
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    app = EnginePassthrough(bentoml, "http://127.0.0.1:1", OPERATIONS, 1000)
    asyncio.run(app({"type": "websocket", "path": "/v1/realtime"}, None, send))
    assert sent == ["websocket.close"]
