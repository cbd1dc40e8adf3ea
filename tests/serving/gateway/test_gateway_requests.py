"""What the gateway lets through to an engine, from whom, and how large; with a real haproxy."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from tests.serving.gateway.gateways import ASK, ask, front, workers
from tests.serving.gateway.upstreams import Upstream, upstreams
from tests.waiting import until
from weighbridge.core.errors import BadInput
from weighbridge.core.processes import free_port
from weighbridge.serving.client_requests import OPENAI_OPERATIONS
from weighbridge.serving.gateway.config import maps
from weighbridge.serving.gateway.files import DesiredState
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.haproxy import Server, alerts
from weighbridge.serving.gateway.models import Front, GatewayArgs, Route
from weighbridge.serving.gateway.runtime_commands import runtime_commands
from weighbridge.serving.supervisor import Supervisor

PAGE = "https://app.example.com"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One haproxy for the module; every test has a target of its own."""
    home = tmp_path_factory.mktemp("gateway")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHBRIDGE_METRICS_PORT", "0")
        yield Gateway(home)
    Supervisor(home).shutdown()


@pytest.fixture(scope="module")
def engine() -> Iterator[Upstream]:
    with upstreams("7") as (upstream,):
        yield upstream


def serve(shared: Gateway, engine: Upstream, **args: object) -> int:
    """Return the port of a target with these arguments."""
    port = free_port()
    shared.apply(front(port, engine, target=f"t{port}", **args))
    return port


def send(port: int, *parts: bytes, pause: float = 0) -> bytes:
    """Return what comes back to these bytes, up to the end of the connection."""
    answer = b""
    # It may answer and close before all is sent, or close at once.
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(("127.0.0.1", port), timeout=20) as connection,
    ):
        for part in parts:
            with contextlib.suppress(ConnectionError):
                connection.sendall(part)
            time.sleep(pause)
        while received := connection.recv(65536):
            answer += received
    return answer


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join(
        [f"{line} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    ).encode()


def status(answer: bytes) -> int:
    return int(answer.split()[1])


CLOSED = (
    *("/lora-adapters", "/slots", "/slots/0?action=erase", "/props", "/metrics", "/completion"),
    *("/completions", "/infill", "/tokenize", "/v1/load_lora_adapter", "/", "slots", "*"),
    *("/%6cora-adapters", "//lora-adapters", "/./slots", "/v1/../slots", "/v1/models/../../slots"),
    *("/v1/..%2fslots", "/slots;/v1/models", "/v1/models;/../../slots", "/SLOTS", "/V1/models"),
    *(
        "/v1/models/",
        "//v1/models",
        "/v1%2fmodels",
        "/v1/models%00",
        "/v1/models%20",
        "/v1/./models",
    ),
    *("http://x/slots", "http://x/v1/../slots", "http://v1/models/slots", "http:///slots"),
    *("/slots#/v1/models", "/v1/models#", "/slots?/v1/models", "/v1/models/..", "/v1/models/x"),
    *("http://x#/v1/models", "http://x/slots?/v1/models", "\\slots", "/\\slots", "/v1\\models"),
)
OTHER_METHODS = (
    *("POST /v1/models", "DELETE /v1/models", "OPTIONS /v1/models", "TRACE /v1/models"),
    *(f"GET {ASK}", f"post {ASK}", f"PUT {ASK}", f"OPTIONS {ASK}", f"PATCH {ASK}"),
    *("POST /health", "CONNECT 127.0.0.1:80", "CONNECT /v1/models", "OPTIONS *", "get /v1/models"),
)


def test_clients_reach_what_an_engine_declares_however_they_spell_the_rest(
    shared: Gateway, engine: Upstream
) -> None:
    port = serve(shared, engine)
    for line in (
        *(f"{method} {path}" for method in ("GET", "POST") for path in CLOSED),
        *OTHER_METHODS,
    ):
        answer = send(port, head(line, "Content-Length: 2") + b"{}")
        # 400 and no JSON: haproxy's own answer to what is no HTTP, such as an address without `/`.
        assert b'{"error":{"message":' in answer or status(answer) == 400, line
        assert status(answer) in (400, 404), line
    assert not [line for line in engine.asked if line != "GET /health"]


def test_what_is_declared_goes_through_with_its_query_and_as_an_absolute_address(
    shared: Gateway, engine: Upstream
) -> None:
    port = serve(shared, engine)
    body = b'{"a":1}'
    for target in (ASK, f"{ASK}?x=/../slots", f"http://x{ASK}?x"):
        upgrade = ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMA")
        answer = send(port, head(f"POST {target}", "Content-Length: 7", *upgrade) + body)
        assert status(answer) == 200, target
        assert engine.asked[-1] == f"POST {target.removeprefix('http://x')}"
        assert "Upgrade" not in engine.seen[-1]
    assert status(send(port, head("GET /health"))) == 200


def test_over_http_2_the_same_is_open_and_closed(shared: Gateway, engine: Upstream) -> None:
    port = serve(shared, engine)
    command = [
        "curl",
        "-s",
        "--http2-prior-knowledge",
        "--path-as-is",
        "-w",
        "%{http_code}",
        "-X",
        "POST",
    ]
    for path, expected in ((ASK, "200"), ("/slots", "404"), ("/v1/../slots", "404")):
        url = f"http://127.0.0.1:{port}{path}"
        asked = subprocess.run([*command, url], capture_output=True, text=True, check=True)
        assert asked.stdout[-3:] == expected, path


def test_of_two_engines_what_both_declare_is_open(engine: Upstream) -> None:
    """A request may reach either; only what drains gets none."""
    openai, wider = OPENAI_OPERATIONS, OPENAI_OPERATIONS | {"POST /v1/rerank"}
    routes = [
        Route(name="7", port=1, operations=tuple(openai), health="/health"),
        Route(name="8", port=2, operations=tuple(wider), health="/well"),
    ]
    both = Front(target="demo", port=3, routes=tuple(routes))
    entries = maps(both).operations.entries
    assert "POST/v1/rerank" not in entries
    assert {"GET/health", "GET/well", "POST/v1/chat/completions"} <= entries.keys()
    draining = routes[0].model_copy(update={"draining": True})
    alone = both.model_copy(update={"routes": (draining, routes[1])})
    assert "POST/v1/rerank" in maps(alone).operations.entries


def test_while_no_version_serves_a_request_is_not_wrong() -> None:
    """It is told to come back: 503, and not 404."""
    none = maps(Front(target="demo", port=3))
    assert {"GET/health", "POST/v1/chat/completions"} <= none.operations.entries.keys()
    assert none.models.entries.keys() == {"*"}


def test_an_operation_is_closed_while_a_version_is_there_that_lacks_it() -> None:
    wider = Route(name="8", port=2, operations=(*OPENAI_OPERATIONS, "POST /v1/rerank"))
    plain = Route(name="7", port=1)
    before = Front(target="demo", port=3, routes=(wider,))
    both = Front(target="demo", port=3, routes=(wider, plain))
    known = dict(maps(before))
    commands = runtime_commands(both, {}, known)
    closes = commands.index("del map demo.operations POST/v1/rerank")
    assert closes < next(
        n for n, line in enumerate(commands) if line.startswith("add server demo/7")
    )
    known = dict(maps(both))
    server = Server("demo", "7", "127.0.0.1:1", "UP", 100, 64, 0, 0, 0)
    commands = runtime_commands(before, {"7": server}, known)
    opens = commands.index("add map demo.operations POST/v1/rerank 1")
    assert commands.index("set server demo/7 state maint") < opens


@pytest.mark.parametrize(
    "operation", ["/v1/models", "GET /a;b", "GET /a b", "GET /%61", "GET /../a"]
)
def test_an_operation_that_is_not_exact_is_refused(gateway: Gateway, operation: str) -> None:
    routes = (Route(name="7", port=9, operations=(operation,)),)
    with pytest.raises(BadInput, match="declares"):
        gateway.apply(Front(target="demo", port=free_port(), routes=routes))


def test_a_body_too_large_is_refused_before_the_engine_sees_it(
    shared: Gateway, engine: Upstream
) -> None:
    port = serve(shared, engine, max_body_bytes=100_000)
    asked = len(engine.seen)
    length, chunked = "Content-Length: 100001", "Transfer-Encoding: chunked"
    chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
    bytewise = b"1\r\nx\r\n" * 100_001 + b"0\r\n\r\n"
    for parts in (
        (head(f"POST {ASK}", length),),
        (head(f"POST {ASK}", length, "Expect: 100-continue"),),
        (head(f"POST {ASK}", length), b"x" * 100_001),
        (head(f"POST {ASK}", chunked), chunk * 11, b"0\r\n\r\n"),
        (head(f"POST {ASK}", chunked), bytewise),
        (head("GET /health", length),),
    ):
        answer = send(port, *parts)
        assert status(answer) == 413, parts[0]
        assert b"request_too_large" in answer
    for parts in (
        (head(f"POST {ASK}", "Content-Length: 100000"), b"x" * 100_000),
        (head(f"POST {ASK}", chunked), chunk * 10, b"0\r\n\r\n"),
        (head(f"POST {ASK}", chunked), b"1\r\nx\r\n" * 100_000, b"0\r\n\r\n"),
    ):
        assert status(send(port, *parts)) == 200, parts[0]
    assert len(engine.seen) == asked + 3
    expecting = head(f"POST {ASK}", "Content-Length: 2", "Expect: 100-continue")
    assert send(port, expecting, b"{}", pause=0.1).startswith(b"HTTP/1.1 100 ")
    assert "Expect" not in engine.seen[-1]


def test_a_large_head_is_refused_since_it_would_take_the_place_of_the_body(
    shared: Gateway, engine: Upstream
) -> None:
    port = serve(shared, engine, max_body_bytes=100_000)
    for request in (
        head(f"POST {ASK}?{'x' * 9000}"),
        head(f"POST {ASK}", *(f"X-{n}: {'y' * 900}" for n in range(40))),
    ):
        assert status(send(port, request)) == 431


def test_clients_that_send_half_a_body_take_no_place_from_others(
    shared: Gateway, engine: Upstream
) -> None:
    port = serve(shared, engine, in_flight=2, queue=2, request_seconds=2)
    asked = len(engine.seen)
    half = head(f"POST {ASK}", "Content-Length: 1000") + b"{"
    with contextlib.ExitStack() as connections:
        stalled = [
            connections.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(100)
        ]
        for connection in stalled:
            connection.sendall(half)
        assert [ask(port).status_code for _ in range(5)] == [200] * 5
        assert len(engine.seen) == asked + 5
        stalled[0].settimeout(20)
        assert stalled[0].recv(1000).startswith(b"HTTP/1.1 408 ")


def test_an_address_has_so_many_connections_and_opens_so_many(
    shared: Gateway, engine: Upstream
) -> None:
    port = serve(shared, engine, connections_per_address=3)
    with contextlib.ExitStack() as connections:
        for _ in range(3):
            connections.enter_context(socket.create_connection(("127.0.0.1", port)))
        # A fourth that haproxy took before the third would have the third closed.
        table = f"show table t{port}:connections"
        until(lambda: "conn_cur=3" in shared._master.ask_worker(workers(shared)[0], table))
        assert send(port, head("GET /health")) == b""
    until(lambda: status(send(port, head("GET /health")) or b"HTTP/1.1 0") == 200)
    port = serve(shared, engine, new_connections_per_address=5)
    answers = [send(port, head("GET /health")) for _ in range(6)]
    assert [bool(answer) for answer in answers] == [True] * 5 + [False]


def test_a_client_that_does_not_read_is_let_go_and_a_slow_version_is_waited_for(
    shared: Gateway, engine: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = serve(shared, engine, idle_seconds=0.5)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head("POST /large"))
        until(lambda: engine.left == 1)
    monkeypatch.setattr(engine, "delay", 1.5)
    assert ask(port).status_code == 200
    port = serve(shared, engine, answer_seconds=0.5)
    assert ask(port).status_code == 504


def test_an_error_quotes_what_haproxy_complains_of(gateway: Gateway) -> None:
    nowhere = Front(target="demo", port=99_999)
    with pytest.raises(BadInput, match=r"haproxy says: \[ALERT\].*[Pp]ort"):
        gateway._files.check(DesiredState(metrics_port=1, fronts=(nowhere,)))
    log = '{"target":"demo"}\n[NOTICE] new\n[ALERT] (7) : no\n  way\n{"target":"demo"}\n'
    assert alerts(log) == "[ALERT] (7) : no"
    assert alerts('{"target":"demo"}\nkilled\n') == "killed"
    assert alerts('{"target":"demo"}\n') == ""


def test_pages_of_other_origins_are_let_in_where_the_recipe_names_them(
    shared: Gateway, engine: Upstream
) -> None:
    port = serve(shared, engine)
    answer = ask(port, Origin=PAGE)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert preflight(port, PAGE).status_code == 404

    port = serve(shared, engine, cors_origins=[PAGE, "http://localhost:3000"])
    allowed = preflight(port, PAGE)
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert allowed.headers["access-control-allow-headers"] == "authorization,content-type"
    assert allowed.headers["access-control-allow-methods"] == "GET, POST"
    assert ask(port, Origin=PAGE).headers["access-control-allow-origin"] == PAGE
    unknown = ask(port, "/slots", Origin=PAGE)
    assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (404, PAGE)
    for other in ("https://app.example.com.evil.net", "https://APP.example.com", "null", "https:"):
        assert preflight(port, other).status_code == 404
        headers = ask(port, Origin=other).headers
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["vary"] == "Origin"


def test_any_origin_gets_no_credentials(shared: Gateway, engine: Upstream) -> None:
    port = serve(shared, engine, cors_origins=["*"])
    for answer in (preflight(port, PAGE), ask(port, Origin=PAGE)):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


def test_a_preflight_request_needs_no_key(
    shared: Gateway, engine: Upstream, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("0" * 64 + "\n")
    port = serve(shared, engine, cors_origins=[PAGE], api_keys=str(tmp_path / "keys"))
    assert preflight(port, PAGE).status_code == 204
    refused = ask(port, Origin=PAGE)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)


def preflight(port: int, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return httpx.options(f"http://127.0.0.1:{port}{ASK}", headers=headers, trust_env=False)


@pytest.mark.parametrize(
    "origins",
    [
        *(["*", PAGE], [f"{PAGE}/"], ["app.example.com"], ["https://App.example.com"], ["null"]),
        *([""], [f"{PAGE} x"], ["https://*.example.com"], ["https://a,https://b"], [f"{PAGE}'"]),
        *([f"{PAGE}\n"], [f"{PAGE}:"], ["https://"]),
    ],
)
def test_what_is_no_origin_is_refused(origins: list[str]) -> None:
    with pytest.raises(ValidationError, match="origin"):
        GatewayArgs.model_validate({"cors_origins": origins})


def named(shared: Gateway, *versions: tuple[Upstream, tuple[str, ...]], **args: object) -> Front:
    """A target whose versions go by these names, once it is so."""
    desired = front(free_port(), *(upstream for upstream, _ in versions), target="named", **args)
    routes = tuple(
        route.model_copy(update={"models": models})
        for route, (_, models) in zip(desired.routes, versions, strict=True)
    )
    shared.apply(desired := desired.model_copy(update={"routes": routes}))
    return desired


def call(port: int, model: object, filler: int = 0) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "x" * filler}], "model": model}
    return httpx.post(f"http://127.0.0.1:{port}{ASK}", json=body, trust_env=False, timeout=20)


def test_a_model_goes_by_its_name_and_by_no_other(shared: Gateway, engine: Upstream) -> None:
    port = named(shared, (engine, ("shop", "shop/polite"))).port
    for model in ("shop", "shop/polite", None):
        assert call(port, model).status_code == 200
    assert ask(port).status_code == 200, "without a name it is the engine's to say"
    assert call(port, "shop", filler=900_000).status_code == 200
    for model in ("gpt-4o", 'a"b\\', "shop ", "*", 7):
        refused = call(port, model, filler=100_000)
        assert (refused.status_code, refused.json()["error"]) == (
            404,
            {
                "message": f"The model `{model}` does not exist or you do not have access to it.",
                "type": "invalid_request_error",
                "param": None,
                "code": "model_not_found",
            },
        )


def test_any_name_will_do_where_a_recipe_or_a_version_says_so(
    shared: Gateway, engine: Upstream
) -> None:
    assert call(named(shared, (engine, ("shop",)), any_model=True).port, "gpt-4o").is_success
    with upstreams("8") as (older,):
        assert call(named(shared, (engine, ("shop",)), (older, ())).port, "model").is_success
        assert call(named(shared, (engine, ("shop",))).port, "model").status_code == 404
    unwritable = named(shared, (engine, ("a name\ndel map",)))
    assert call(unwritable.port, "anything").is_success
