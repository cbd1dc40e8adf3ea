"""What the gateway is asked for, and what it reports: value types, with no haproxy in them."""

from pydantic import BaseModel, ConfigDict, Field


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
    api_keys: str = Field(
        "", description="File with the sha256 of one API key per line (hex); empty: no key needed."
    )
    tls: str = Field("", description="PEM file with certificate and key; empty: plain HTTP.")


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
    health: str = Field("/health", description="Path that says 200 while the engine is well.")


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
