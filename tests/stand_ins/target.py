"""A target in memory: a gateway and a supervisor that can be looked at, break, and lie about what
they did.

Every effect, and whatever else a test wraps into `World.effect`, is numbered; a `Fault` happens at
one of them.
"""

import contextlib
import itertools
import random
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.serving.gateway.models import FinishedRequest
from weighbridge.serving.targets.base import Release, Revision, Share, Target, TargetArgs

PATH = "tests.stand_ins.target:MemoryTarget"
WORLDS: dict[Path, "World"] = {}
_CLOCK = itertools.count(1)


class Crash(BaseException):
    """The process that rolls out dies here."""


@dataclass(frozen=True)
class Fault:
    """What happens at effect number `at`."""

    at: int
    kind: Literal["crash before", "crash after", "done but told it timed out", "not done"]


@dataclass
class Version:
    """How a version behaves."""

    starts: bool = True
    answers: bool = True
    garbage: bool = False
    error_share: float = 0.0
    seconds: float = 0.05
    dies_after: int = 0
    """Looks at it until it is dead; 0: never."""
    memory: int = 100 << 20
    hangs: bool = False
    """It runs and answers nobody, until it is started again."""


@dataclass
class World:
    """One machine."""

    versions: dict[str, Version] = field(default_factory=dict)
    running: dict[str, "MemoryRevision"] = field(default_factory=dict)
    routes: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """Weight and draining by revision."""
    door: str = ""
    """How the address is kept."""
    refreshed: int = 0
    """How often only who is let in was to follow its files."""
    in_flight: dict[str, int] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    """Unix time at which each revision was started last."""
    answered: float = 0.0
    """Requests that the gateway counts as answered."""
    free: int = 8 << 30
    busy: bool = True
    """Whether clients ask."""
    effects: list[str] = field(default_factory=list)
    fault: Fault | None = None
    violations: list[str] = field(default_factory=list)
    was_served: bool = False
    may_cut: bool = False
    """Requests under way may be cut."""
    may_pause: bool = False
    """A swap: nobody serves for a while."""
    dice: random.Random = field(default_factory=lambda: random.Random(7))

    def version(self, name: str) -> Version:
        """By the version's number, or a revision's name."""
        return self.versions.setdefault(name.partition(".")[0], Version())

    @contextlib.contextmanager
    def effect(self, what: str) -> Iterator[None]:
        number = len(self.effects)
        self.effects.append(what)
        kind = self.fault.kind if self.fault and self.fault.at == number else ""
        if kind == "crash before":
            raise Crash(what)
        if kind == "not done":
            raise Unavailable(what, "injected")
        yield
        self.check(what)
        if kind == "crash after":
            raise Crash(what)
        if kind == "done but told it timed out":
            raise Unavailable(what, "it timed out")

    def check(self, after: str) -> None:
        """The invariants: no traffic to what is not ready, nothing stopped that is routed to,
        somebody serves.
        """
        serving = [name for name, (weight, _) in self.routes.items() if weight]
        for name in serving:
            if name not in self.running or not self.version(name).answers:
                self.violations.append(f"after {after}: traffic to {name}, which is not ready")
        for name, (_, draining) in self.routes.items():
            if (
                draining
                and name not in self.running
                and self.in_flight.get(name)
                and not self.may_cut
            ):
                self.violations.append(f"after {after}: {name} is stopped and had requests")
        if self.was_served and not serving and not self.may_pause:
            self.violations.append(f"after {after}: nobody serves")
        self.was_served = self.was_served or bool(serving)


class MemoryArgs(TargetArgs):
    """How its address is kept, in a word; `taken` is one that can't be had."""

    kind: Literal["memory"] = "memory"
    door: str = "open"


class MemoryRevision(Revision):
    """A revision that is an entry of a dictionary."""


class MemoryLiveness:
    def __init__(self, world: World, name: str) -> None:
        self._world, self._name, self._looks = world, name, 0

    def check(self) -> None:
        self._looks += 1
        version = self._world.version(self._name)
        if version.dies_after and self._looks >= version.dies_after:
            raise Unavailable(f"serving {self._name}", "it ended")
        if not version.starts:
            raise Unavailable(f"serving {self._name}", "it ended before it answered")

    def memory(self) -> int:
        return self._world.version(self._name).memory


class MemoryTraffic:
    def __init__(self, world: World) -> None:
        self._world = world

    def read(self) -> list[FinishedRequest]:
        """Ten requests, by the shares."""
        world = self._world
        open_to = {name: weight for name, (weight, _) in world.routes.items() if weight}
        if not world.busy or not open_to:
            return []
        names = world.dice.choices(list(open_to), list(open_to.values()), k=10)
        return [self._seen(name, world.version(name)) for name in names]

    def _seen(self, name: str, version: Version) -> FinishedRequest:
        failed = self._world.dice.random() < version.error_share
        seconds = version.seconds * self._world.dice.uniform(0.8, 1.25)
        return FinishedRequest(
            server=name,
            status=500 if failed else 200,
            seconds=seconds,
            stream=False,
            truncated=False,
            at=next(_CLOCK),
        )


class MemoryTarget(Target[MemoryArgs, MemoryRevision]):
    """The plugin `memory`; its machine is `WORLDS[home]`."""

    Args: ClassVar[type[TargetArgs]] = MemoryArgs
    revision_model: ClassVar[type[Revision]] = MemoryRevision

    @property
    def world(self) -> World:
        return WORLDS[self.home]

    @property
    def address(self) -> str:
        return "http://memory"

    def has(self, release: Release) -> bool:
        return True

    def prepare(self, release: Release, taken: Collection[str]) -> MemoryRevision:
        names = (
            release.version if n == 1 else f"{release.version}.{n}" for n in itertools.count(1)
        )
        name = next(name for name in names if name not in taken)
        return MemoryRevision(name=name, release=release, url=f"http://{name}")

    def start(self, revision: Revision) -> MemoryLiveness:
        with self.world.effect(f"start {revision.name}"):
            self.world.running[revision.name] = MemoryRevision(**dict(revision))
            self.world.started[revision.name] = time.time()
        return MemoryLiveness(self.world, revision.name)

    def answers(self, revision: Revision) -> bool:
        version = self.world.version(revision.name)
        return revision.name in self.world.running and version.starts and version.answers

    def is_healthy(self, revision: Revision) -> bool:
        running = revision.name in self.world.running
        return running and not self.world.version(revision.name).hangs

    def running_since(self, revision: Revision) -> float:
        return self.world.started.get(revision.name, 0.0)

    def traffic_figures(self, revision: Revision) -> dict[str, float]:
        return {"responses_2xx": self.world.answered}

    def restart(self, revision: Revision) -> bool:
        self.world.version(revision.name).hangs = False
        self.world.started[revision.name] = time.time()
        return True

    def stop(self, revision: Revision) -> None:
        self.stop_named(revision.name)

    def running(self) -> set[str]:
        return set(self.world.running)

    def stop_named(self, revision_name: str) -> None:
        with self.world.effect(f"stop {revision_name}"):
            self.world.running.pop(revision_name, None)

    def route(self, shares: Sequence[Share[MemoryRevision]]) -> None:
        routes = _routes(shares)
        if self.is_routed(shares):
            return
        if self.args.door == "taken":
            raise BadInput("routing", "the address is somebody else's")
        with self.world.effect(f"route {routes}"):
            self.world.routes, self.world.door = routes, self.args.door

    def refresh_access(self) -> None:
        self.world.refreshed += 1

    def is_routed(self, shares: Sequence[Share[MemoryRevision]]) -> bool:
        return (_routes(shares), self.args.door) == (self.world.routes, self.world.door)

    def in_flight(self, revision: Revision) -> int:
        return self.world.in_flight.get(revision.name, 0)

    def traffic(self) -> MemoryTraffic:
        return MemoryTraffic(self.world)

    def free_memory(self) -> int | None:
        return self.world.free


def _routes(shares: Sequence[Share[MemoryRevision]]) -> dict[str, tuple[int, bool]]:
    return {share.revision.name: (share.weight, share.draining) for share in shares}
