"""Where it runs: what a `target` plugin offers. How a rollout goes is the same at all of them:
rollout/rollout.py.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.serving.gateway.models import FinishedRequest


class TargetArgs(BaseModel):
    """Base of every target's arguments; `kind` names the plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str


class Release(BaseModel):
    """What a target is asked to serve."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Registered model.")
    version: str = Field(description="Its version in MLflow.")
    bento: str = Field(description="Bento tag.")
    digest: str = Field(description="Digest of the exported Bento.")
    peak_memory: int = Field(0, description="Bytes it took when it was weighed; 0: not known.")


class Revision(BaseModel):
    """A release as it runs, or ran, at a target. Targets add what they need to find it again."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(
        description="At the gateway and in `X-Weighbridge-Version`: `7`, or `7.2` beside another 7."
    )
    release: Release
    url: str = Field(description="Base URL of its own engine, past the gateway.")
    since: float = Field(0.0, description="Unix time at which it began to serve.")


class Share(BaseModel):
    """How much of the new requests one revision gets."""

    model_config = ConfigDict(frozen=True)

    revision: Any
    weight: int = Field(100, ge=0, le=100, description="Percent; 0: pinned requests alone.")
    draining: bool = Field(False, description="Nothing new at all.")


class Serving(BaseModel):
    """What a target serves, as seen from outside."""

    release: Release | None
    address: str = Field(description="Base URL without `/v1`.")
    healthy: bool
    detail: str = ""
    since: float = Field(0.0, description="Unix time at which this release began to serve.")


class Traffic(Protocol):
    """Finished requests at a target's address, since it was opened."""

    def read(self) -> list[FinishedRequest]:
        """Those that ended since the last call."""


class Pulse(Protocol):
    """Whether a started revision lives."""

    def check(self) -> None:
        """Raises Unavailable, with its log's tail, when it has ended since it was started, even if
        it is up again.
        """

    def memory(self) -> int:
        """Bytes of all its processes; 0 where it can't be told."""


class Target(Protocol):
    """A named place with one stable address. Every effect can be repeated without harm: what is so
    already stays.
    """

    Args: ClassVar[type[TargetArgs]]
    Runs: ClassVar[type[Revision]]
    """What `prepare` returns, for reading it back."""

    def address(self, args: Any) -> str:
        """Base URL that clients use, without `/v1`."""

    def check(self, target: str, args: Any, home: Path) -> None:
        """Whether it could serve here, long before it has to. Raises BadInput, Unavailable."""

    def credentials(self, args: Any, home: Path) -> dict[str, str]:
        """Headers that a request of ours to the address must carry."""

    def has(self, release: Release, home: Path) -> bool:
        """Whether its Bento is here."""

    def prepare(
        self, target: str, args: Any, release: Release, taken: Collection[str], home: Path
    ) -> Revision:
        """All that can be done before anything starts: its Bento is here, its environment made.
        Raises Unavailable.
        """

    def start(self, revision: Any, home: Path) -> Pulse:
        """Run it beside whatever runs, with no traffic."""

    def answers(self, revision: Any) -> bool:
        """Whether its engine is well and a real completion comes back."""

    def is_well(self, revision: Any, home: Path) -> bool:
        """Whether it runs and its engine says so: a quick look."""

    def stop(self, revision: Any, home: Path) -> None:
        """End it and wait until no process of it is left."""

    def running(self, target: str, home: Path) -> set[str]:
        """Names of the revisions that run, or are kept running."""

    def stop_named(self, target: str, name: str, home: Path) -> None:
        """End a revision that only its name is known of."""

    def route(self, target: str, args: Any, shares: Sequence[Share], home: Path) -> None:
        """New requests go to these by these shares, from now on and after a restart. Raises
        BadInput, Unavailable.
        """

    def routed(self, target: str, args: Any, shares: Sequence[Share], home: Path) -> bool:
        """Whether the running gateway does exactly that."""

    def in_flight(self, target: str, revision: Any, home: Path) -> int:
        """Requests that it is answering."""

    def traffic(self, target: str, home: Path) -> Traffic:
        """From now on."""

    def free_memory(self) -> int | None:
        """Bytes that a further revision could take; None where that is not this target's to say."""

    def close(self, target: str, home: Path) -> None:
        """Give the address up."""
