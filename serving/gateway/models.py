"""What the gateway is asked for, and what it reports: value types, with no haproxy in them."""

import re
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from weighbridge.core.field_types import PathText, absolute
from weighbridge.core.formatting import quoted
from weighbridge.serving.client_requests import BODY_SECONDS, MAX_BODY_BYTES, OPENAI_OPERATIONS

ANY_ORIGIN: Final = "*"
HEALTH: Final = "/health"
"""Where engines say how they are, unless they say otherwise."""
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::\d{1,5})?")


class GatewayArgs(BaseModel):
    """How a target's address treats its clients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_flight: int = Field(
        64,
        ge=1,
        description="Requests that one version works on at a time; more wait in the queue.",
    )
    queue: int = Field(
        256, ge=0, description="Requests that may wait; past it: 503 with Retry-After."
    )
    queue_seconds: float = Field(30.0, gt=0, description="Longest wait in the queue, in seconds.")
    api_keys: PathText = Field(
        "", description="File with the sha256 of one API key per line (hex); empty: no key needed."
    )
    tls: PathText = Field("", description="PEM file with certificate and key; empty: plain HTTP.")
    max_body_bytes: int = Field(
        MAX_BODY_BYTES,
        ge=1 << 10,
        le=64 << 20,
        description="Largest body of a request; past it: 413. The gateway keeps a body in memory "
        "until it is whole.",
    )
    request_seconds: float = Field(
        BODY_SECONDS,
        gt=0,
        description="Longest time that a request's head may take to come, and then its body; past "
        "it: 408.",
    )
    idle_seconds: float = Field(
        60.0,
        gt=0,
        description="Longest time for which a client may stop sending a request, or reading an "
        "answer that waits for it.",
    )
    answer_seconds: float = Field(
        3600.0,
        gt=0,
        description="Longest time for which a version may send nothing while it answers; past it: "
        "504.",
    )
    connections_per_address: int = Field(
        0,
        ge=0,
        description="Connections, and requests under way, that one client address may have at a "
        "time; 0: half of all that the gateway takes.",
    )
    new_connections_per_address: int = Field(
        0,
        ge=0,
        description="Connections that one client address may open within ten seconds; 0: any "
        "number.",
    )
    any_model: bool = Field(
        False,
        description="Whether a request may name any model, for clients that can't be changed; an "
        "engine that looks at the name itself, such as vLLM, still refuses others.",
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="Origins whose web pages may ask, such as https://app.example.com; `*` alone: "
        "any, without credentials; none: no page may.",
    )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if origins == (ANY_ORIGIN,):
            return origins
        for origin in origins:
            if origin == ANY_ORIGIN:
                raise ValueError("`*` stands alone: any origin, or those that are named")
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{quoted(origin)} is no origin: write scheme and host, and a port that is not "
                    "the scheme's own, in small letters and without a path, as browsers send it: "
                    "https://app.example.com"
                )
        return origins

    @field_validator("api_keys", "tls")
    @classmethod
    def _absolute(cls, path: str) -> str:
        """Return the path as every process finds it: the deployer works in another folder."""
        return str(absolute(path)) if path else ""


class Route(BaseModel):
    """One version behind a target's address."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Of the server: the MLflow version, `7` or `7.2`.")
    host: str = "127.0.0.1"
    port: int
    weight: int = Field(
        100, ge=0, le=100, description="Percent of new requests; 0: pinned ones alone."
    )
    draining: bool = Field(
        False, description="Finishes what it has and gets nothing new, pinned or not."
    )
    health: str = Field(HEALTH, description="Path that says 200 while the engine is well.")
    models: tuple[str, ...] = Field(
        (), description="Names by which requests may call its model; none: any."
    )
    operations: tuple[str, ...] = Field(
        tuple(sorted(OPENAI_OPERATIONS)),
        description="What clients may ask of the engine: each a method and an exact path.",
    )


class Front(BaseModel):
    """A target's address and all that stands behind it."""

    model_config = ConfigDict(frozen=True)

    target: str
    host: str = "127.0.0.1"
    port: int
    args: GatewayArgs = GatewayArgs()
    routes: tuple[Route, ...] = ()


class ServerState(BaseModel):
    """The actual state of a version, as the running gateway sees it."""

    model_config = ConfigDict(frozen=True)

    name: str
    host: str
    port: int
    weight: int
    draining: bool
    up: bool = Field(description="By its health checks.")
    sessions: int = Field(description="Requests under way.")
    requests: int = Field(description="Since the gateway started.")


class FinishedRequest(BaseModel):
    """One finished request, from the gateway's log."""

    model_config = ConfigDict(frozen=True)

    server: str = Field(description="Version that answered; empty where none did.")
    status: int
    seconds: float = Field(description="From the request's first byte to the answer's last.")
    stream: bool = Field(description="The answer was an event stream.")
    truncated: bool = Field(description="The server's side broke off before the answer was whole.")
    aborted: bool = Field(False, description="The client went away.")
    pinned: bool = False
    moved: bool = Field(
        False,
        description="Another version was tried first, in vain: the time is not this one's alone.",
    )
    at: float = Field(description="Unix time at which it ended.")
    first_byte: float | None = Field(
        None, description="Seconds until the version sent its answer's head; empty: not known."
    )
    bytes: int = Field(0, description="Length of the answer's body; 0: not known.")
