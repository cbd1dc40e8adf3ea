"""What the deployer listens to: MLflow's webhook, wake-up calls, flow runs of the worker's, and
questions about its state.

A webhook is only a reason to look soon. One that is forged, too old, too long or delivered twice
changes nothing; for one that is lost, the deployer's own look comes later.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import uvicorn
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.service_addresses import HOST
from weighbridge.deployer.hosted_runs import Outcome

logger = logging.getLogger(__name__)

PATH = "/webhooks/mlflow"
WINDOW = 300.0
"""Seconds that a delivery may be old, or ahead of our clock."""
MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT = 10.0
"""Seconds that a request's body may take."""
CLOSING_ROUNDS = 5
"""Of the event loop: accepting, the transport, its protocol and closing take one each."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Delivery(BaseModel):
    """One webhook of MLflow's, whose signature is right."""

    model_config = ConfigDict(frozen=True)

    id: str
    entity: str
    action: str
    data: dict[str, Any]

    @property
    def event(self) -> str:
        """Its name among Prefect's events: `mlflow.model-version-alias.created`."""
        return f"mlflow.{self.entity.replace('_', '-')}.{self.action}"


@dataclass(frozen=True)
class Callbacks:
    """What a receiver calls. None of it may block: the receiver answers one request at a time."""

    delivery: Callable[[Delivery], None]
    wake: Callable[[str, str], None]
    """With target (empty: all of them) and trigger."""
    status: Callable[[], Mapping[str, Any]]
    run: "Callable[[str, UUID], Future[Outcome]]"
    """With a flow's name and the id of a flow run."""


class DeliveryRejected(Exception):
    """A request that is answered with a status of its own."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


def signature(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """Return what MLflow puts into `X-MLflow-Signature`."""
    digest = hmac.new(
        secret.encode(), f"{delivery}.{timestamp}.".encode() + body, hashlib.sha256
    ).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def verified(headers: Mapping[str, str], body: bytes, secret: str, now: float) -> str:
    """Return the id of a delivery that MLflow signed within the window.

    Raises:
        DeliveryRejected: it is not signed, not with this secret, or not now. Without a secret every
            delivery is rejected.
    """
    delivery, timestamp = (
        headers.get("x-mlflow-delivery-id", ""),
        headers.get("x-mlflow-timestamp", ""),
    )
    received = headers.get("x-mlflow-signature", "")
    expected = signature(secret, delivery, timestamp, body)
    # compare_digest takes the same time wherever the two differ, so that nobody finds the right
    # signature by measuring. It wants bytes, since a header may hold any character.
    if not secret or not delivery or not hmac.compare_digest(received.encode(), expected.encode()):
        raise DeliveryRejected(401, "the signature is missing or wrong")
    if not re.fullmatch("[0-9]{1,15}", timestamp) or abs(now - int(timestamp)) > WINDOW:
        raise DeliveryRejected(401, f"the timestamp is not within {WINDOW:.0f} s of now")
    return delivery


class SeenDeliveries:
    """Ids of deliveries that were taken, kept over restarts.

    They are kept for as long as their timestamps would be accepted, so that a copy changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: dict[str, float] = {}
        # Where the file is damaged or not there, the worst that follows is a look for nothing.
        with contextlib.suppress(OSError, ValueError):
            self._ids = {str(key): float(at) for key, at in json.loads(path.read_text()).items()}

    def __contains__(self, delivery: str) -> bool:
        return delivery in self._ids

    def add(self, delivery: str, now: float) -> None:
        # A timestamp may be WINDOW ahead of our clock, and is accepted until WINDOW after that.
        kept = {key: at for key, at in self._ids.items() if now - at <= 2 * WINDOW}
        self._ids = {**kept, delivery: now}
        try:
            replace_text(self._path, json.dumps(self._ids), mode=0o600)
        except OSError as exc:
            logger.warning(
                "%s cannot be written, a replay after a restart will not be noticed: %s",
                self._path,
                exc,
            )


def application(
    callbacks: Callbacks,
    secret: SecretStr,
    wake_token: SecretStr,
    seen: SeenDeliveries,
    clock: Callable[[], float] = time.time,
) -> Starlette:
    """Return the receiver's HTTP interface."""

    async def webhook(request: Request) -> JSONResponse:
        body = await _body(request)
        delivery = verified(request.headers, body, secret.get_secret_value(), clock())
        if delivery in seen:
            return JSONResponse({"detail": "seen before"})
        parsed = _parsed(delivery, body)
        seen.add(delivery, clock())
        callbacks.delivery(parsed)
        return JSONResponse({"detail": "taken"})

    async def wake(request: Request) -> JSONResponse:
        _check_token(request.headers, wake_token.get_secret_value())
        fields = _wake_fields(await _body(request))
        callbacks.wake(fields.get("target", ""), fields.get("trigger", "wake"))
        return JSONResponse({"detail": "woken"}, 202)

    async def flow_run(request: Request) -> JSONResponse:
        _check_token(request.headers, wake_token.get_secret_value())
        flow, run = _flow_run_fields(await _body(request))
        outcome = await asyncio.wrap_future(callbacks.run(flow, run))
        statuses: Mapping[Outcome, int] = {"over": 200, "refused": 409, "broken": 500}
        return JSONResponse({"detail": outcome}, statuses[outcome])

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def status(_: Request) -> JSONResponse:
        return JSONResponse(dict(callbacks.status()))

    async def rejected(_: Request, exc: Exception) -> JSONResponse:
        assert isinstance(exc, DeliveryRejected)
        logger.warning("rejected a request with %d: %s", exc.status, exc.why)
        return JSONResponse({"detail": exc.why}, exc.status)

    routes = [
        Route(PATH, webhook, methods=["POST"]),
        Route("/wake", wake, methods=["POST"]),
        Route("/flow-runs", flow_run, methods=["POST"]),
        Route("/health", health),
        Route("/status", status),
    ]
    # A page of the web whose name was made to mean this machine says its own name here.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(
        routes=routes, middleware=[hosts], exception_handlers={DeliveryRejected: rejected}
    )


def _check_token(headers: Mapping[str, str], token: str) -> None:
    """Raise DeliveryRejected where a request is not authorized; without a token none is."""
    given, expected = headers.get("authorization", ""), f"Bearer {token}"
    if not token or not hmac.compare_digest(given.encode(), expected.encode()):
        raise DeliveryRejected(401, "the token is missing or wrong")


async def _body(request: Request) -> bytes:
    """Return the request's body; raise DeliveryRejected where it is long or late."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise DeliveryRejected(413, f"longer than {MAX_BODY_BYTES} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    raise DeliveryRejected(413, f"longer than {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise DeliveryRejected(408, f"it did not come within {BODY_TIMEOUT:.0f} s") from None
    except ClientDisconnect:
        raise DeliveryRejected(400, "it broke off") from None
    return bytes(body)


def _parsed(delivery: str, body: bytes) -> Delivery:
    try:
        return Delivery.model_validate({**json.loads(body), "id": delivery})
    # RecursionError: thousands of brackets inside each other are more than the parser takes.
    except (ValueError, TypeError, ValidationError, RecursionError):
        raise DeliveryRejected(400, "it is not what MLflow's webhooks look like") from None


def _wake_fields(body: bytes) -> dict[str, str]:
    """Return `target` and `trigger` of a wake-up call, both optional."""
    try:
        document = json.loads(body or b"{}")
        fields = {key: document[key] for key in ("target", "trigger") if document.get(key)}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise DeliveryRejected(400, "a JSON object is wanted") from None
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in fields.values()):
        raise DeliveryRejected(400, "`target` and `trigger` are names")
    return fields


def _flow_run_fields(body: bytes) -> tuple[str, UUID]:
    """Return the flow's name and the flow run's id."""
    try:
        document = json.loads(body)
        return str(document["flow"]), UUID(document["id"])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise DeliveryRejected(400, "`flow` and `id` are wanted: a name and a UUID") from None


class Receiver:
    """The receiver on a thread of this process; the constructor takes its port."""

    def __init__(self, app: Starlette, port: int) -> None:
        try:
            # Not by uvicorn: where the port is taken, that ends the whole process.
            self._listener = socket.create_server((HOST, port))
        except OSError as exc:
            remedy = "stop what listens there, or set WEIGHBRIDGE_DEPLOYER_PORT"
            raise Unavailable(
                f"listening on port {port}", exc.strerror or str(exc), remedy
            ) from exc
        # log_config: uvicorn's own would set up logging again, over the deployer's.
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._listener.getsockname()[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5)
        self._listener.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        await self._server.serve(sockets=[self._listener])
        # What was accepted while it ended, uvicorn closes no more. A connection has its protocol
        # some rounds later; what then still has no answer gets none.
        for _ in range(CLOSING_ROUNDS):
            for connection in list(self._server.server_state.connections):
                connection.shutdown()
            await asyncio.sleep(0)
        for connection in list(self._server.server_state.connections):
            connection.transport.close()
        await asyncio.sleep(0)
