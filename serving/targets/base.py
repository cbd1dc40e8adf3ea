"""What a `target` plugin offers: a place where versions run, behind one stable address.

How a rollout goes is the same at all of them: weighbridge/rollout/rollout.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.errors import Unavailable
from weighbridge.core.plugins import load
from weighbridge.serving.gateway.models import FinishedRequest
from weighbridge.serving.targets.home_records import HomeRecords, folder_of
from weighbridge.serving.targets.records import TargetRecords


class TargetArgs(BaseModel):
    """Base of every target's arguments; `kind` names the plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str

    @property
    def splits_traffic(self) -> bool:
        """Whether clients' requests can be shared out by percent; else it is all or nothing."""
        return True


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


A = TypeVar("A", bound=TargetArgs)
R = TypeVar("R", bound=Revision)


class Share(BaseModel, Generic[R]):
    """How much of the new requests one revision gets."""

    model_config = ConfigDict(frozen=True)

    revision: R
    weight: int = Field(100, ge=0, le=100, description="Percent; 0: pinned requests alone.")
    draining: bool = Field(False, description="Nothing new at all.")


class Serving(BaseModel):
    """What a target serves, as seen from outside."""

    release: Release | None
    address: str = Field(description="Base URL without `/v1`.")
    healthy: bool
    detail: str = ""
    since: float = Field(0.0, description="Unix time at which this release began to serve.")


# A protocol, and no base class: the gateway's AccessLog fits it and knows nothing of targets.
class Traffic(Protocol):
    """Finished requests at a target's address, since it was opened."""

    def read(self) -> list[FinishedRequest]:
        """Return those that ended since the last call."""


class NeverRan(Unavailable):
    """A revision can't be brought to run: its image, say, can't be had.

    That says nothing of the version, which is tried again later.
    """


class Liveness(Protocol):
    """Tells whether a revision is still alive since it was started."""

    def check(self) -> None:
        """Raise Unavailable, with the end of its log, when it has ended since it was started.

        Also when it was started again and is up: a version that crashes is not fit to serve.
        NeverRan where no process of it has run, and none will.
        """

    def memory(self) -> int:
        """Return the bytes that all its processes take; 0 where that can't be known."""


class Target(ABC, Generic[A, R]):
    """A named place with one stable address, at which one version serves.

    Every effect can be repeated without harm, because a rollout that was interrupted is continued
    by doing its last effect again: `start` of what runs, `stop` of what has ended and `route` to
    the shares that are in force change nothing and raise nothing.
    """

    Args: ClassVar[type[TargetArgs]]
    """Model of the arguments that a recipe may give."""
    revision_model: ClassVar[type[Revision]]
    """Model of what `prepare` returns, to read it back from the target's state."""

    def __init__(self, name: str, args: A, home: Path) -> None:
        """Keep the arguments; nothing is started, read or written yet.

        Args:
            name: the target's name, unique within `home`.
            args: its arguments, an instance of `Args`.
            home: folder in which this installation keeps its files (`WEIGHBRIDGE_HOME`).
        """
        self.name = name
        self.args = args
        self.home = home

    @property
    @abstractmethod
    def address(self) -> str:
        """The base URL that clients use, without `/v1`. It never changes with the version."""

    @abstractmethod
    def has(self, release: Release) -> bool:
        """Whether the release's Bento is where this target can start it."""

    @abstractmethod
    def prepare(self, release: Release, taken: Collection[str]) -> R:
        """Do all that can be done before anything starts: find the Bento, make its environment.

        Args:
            release: what shall serve.
            taken: names of revisions that the new one must not have.

        Returns:
            The revision, which `start` takes.

        Raises:
            Unavailable: the Bento or its environment can't be had.
        """

    @abstractmethod
    def start(self, revision: R) -> Liveness:
        """Run a revision beside whatever runs, with no traffic. Do not wait until it answers.

        Returns:
            What tells whether it is still alive.

        Raises:
            Unavailable: it can't be started.
        """

    @abstractmethod
    def answers(self, revision: R) -> bool:
        """Whether its engine is healthy and a real completion comes back."""

    @abstractmethod
    def is_healthy(self, revision: R) -> bool:
        """Whether it runs and its engine says that it is healthy: a quick look, no completion."""

    @abstractmethod
    def stop(self, revision: R) -> None:
        """End a revision, and wait until no process of it is left."""

    @abstractmethod
    def running(self) -> set[str]:
        """Return the names of the revisions that run, or that something keeps running."""

    @abstractmethod
    def stop_named(self, revision_name: str) -> None:
        """End a revision of which only the name is known, and wait as `stop` does."""

    @abstractmethod
    def route(self, shares: Sequence[Share[R]]) -> None:
        """Send new requests to these revisions by these shares, from now on and after a restart.

        Args:
            shares: all revisions that may get requests, or still answer some. One that is missing
                gets nothing any more.

        Raises:
            BadInput: the address belongs to somebody else.
            Unavailable: the gateway can't be started or does not do it.
        """

    @abstractmethod
    def is_routed(self, shares: Sequence[Share[R]]) -> bool:
        """Whether the running gateway does exactly what `route` with these shares would make it do.

        The files that say so are not enough: they survive a gateway that was killed.
        """

    @abstractmethod
    def in_flight(self, revision: R) -> int:
        """Return how many requests the revision is answering. Where that can't be known: 1."""

    @abstractmethod
    def traffic(self) -> Traffic:
        """Return a reader of the requests that end from now on."""

    # Optional: what a target may leave as it is here.

    def records(self) -> TargetRecords:
        """Return what is written down of this target, where versions run.

        Here: files of this home, for versions that run on this machine. A target whose versions run
        elsewhere keeps it there, so that any machine that deploys to it goes on from the same.
        """
        return HomeRecords(folder_of(self.name, self.home))

    def check(self) -> None:
        """Make sure that this target could serve here, long before it has to.

        Raises:
            BadInput: its address belongs to somebody else.
            Unavailable: something that it needs is missing.
        """

    def credentials(self) -> dict[str, str]:
        """Return the headers that a request of ours to the address must carry."""
        return {}

    def certificate(self) -> Path | None:
        """Return a file with the certificate that the address shows; None where any authority that
        this machine trusts is to vouch for it, or where there is no TLS.
        """
        return None

    def not_more_open(self) -> Self:
        """Return the same target, as closed as its address is now where the arguments are less so.

        For arguments of which nobody knows whether they are the latest.
        """
        return self

    def refresh_access(self) -> None:
        """Have who is let in follow the files that the arguments name, whatever else goes on.

        Nothing else of the address may change by this: a rollout may be under way.
        """

    def problem(self) -> str:
        """Return what is wrong with the address although it is in service; empty for nothing."""
        return ""

    def waits_for(self, revision: R) -> str:
        """Return what a revision that was started waits for, as whoever runs it says; empty where
        nothing is known.

        It may still come: a node, an image. What can't come is for its Liveness to tell.
        """
        return ""

    def url_of(self, revision: R) -> str:
        """Return the base URL at which this process reaches the revision, past the gateway."""
        return revision.url

    def address_here(self, revision: R) -> str:
        """Return the base URL by which this process reaches the address.

        Args:
            revision: what serves there: where the address has a name that means nothing here, this
                one is asked itself.
        """
        return self.address

    def probe_endpoint(self, revision: R) -> tuple[str, dict[str, str]]:
        """Return where monitoring asks this revision, and the headers that it sends along.

        It should be as near to what clients use as possible, and reach this revision alone.
        """
        return self.address, self.credentials()

    def traffic_figures(self, revision: R) -> dict[str, float]:
        """Return figures of the revision's traffic by name; empty where none are to be had.

        What the names say is in serving/traffic_figures.py; of counters, whoever calls takes the
        difference of two looks.
        """
        return {}

    def free_memory(self) -> int | None:
        """Return the bytes that a further revision could take; None where nobody here knows."""
        return None

    def lacks_room(self, revision: R) -> str:
        """Return why this revision can't run beside the one that serves, which is stopped first
        then; empty where it can, or only its memory says.
        """
        return ""

    def answers_clients(self, revision: R) -> bool:
        """Whether clients of the address get this revision's answers now: a quick look."""
        return self.is_healthy(revision)

    def running_since(self, revision: R) -> float:
        """Return the Unix time at which its process started; 0: it does not run, or nobody here
        knows.
        """
        return 0.0

    def restart(self, revision: R) -> bool:
        """End a revision that hangs, so that it starts again; return whether that was done.

        May be called at any time, while a rollout goes on as well: what was stopped stays stopped.
        """
        return False


def target_class(kind: str) -> type[Target[Any, Any]]:
    """Return the class of a target plugin. Raises BadInput where no plugin has this name."""
    plugin: type[Target[Any, Any]] = load("target", kind)
    return plugin


def target_for(name: str, args: TargetArgs, home: Path) -> Target[Any, Any]:
    """Return the target of this name, of the kind that its arguments say.

    Raises:
        BadInput: no plugin has this kind.
    """
    return target_class(args.kind)(name, args, home)


def free_name(version: str, taken: Collection[str]) -> str:
    """Return a revision's name: `7`, or `7.2`, `7.3` … where that is taken."""
    name, count = version, 1
    while name in taken:
        count += 1
        name = f"{version}.{count}"
    return name
