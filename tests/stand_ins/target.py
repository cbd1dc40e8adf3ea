"""A target in memory: a gateway and a supervisor that can be looked at, break, and lie about what
they did.

Every effect, and whatever else a test wraps into `World.effect`, is numbered; a `Fault` happens at
one of them.
"""

import contextlib
import itertools
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from weighbridge.core.errors import Unavailable
from weighbridge.serving.gateway.models import FinishedRequest
from weighbridge.serving.targets.base import Release, Revision, Share, TargetArgs

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
    """Looks at its pulse until it is dead; 0: never."""
    memory: int = 100 << 20


@dataclass
class World:
    """One machine."""

    versions: dict[str, Version] = field(default_factory=dict)
    running: dict[str, "MemoryRevision"] = field(default_factory=dict)
    routes: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """Weight and draining by revision."""
    in_flight: dict[str, int] = field(default_factory=dict)
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
    """Nothing to say."""

    kind: Literal["memory"] = "memory"


class MemoryRevision(Revision):
    """A revision that is an entry of a dictionary."""


class MemoryPulse:
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


class MemoryTarget:
    """The plugin `memory`; its machine is `WORLDS[home]`."""

    Args: ClassVar[type[TargetArgs]] = MemoryArgs
    Runs: ClassVar[type[Revision]] = MemoryRevision

    def address(self, args: MemoryArgs) -> str:
        return "http://memory"

    def check(self, target: str, args: MemoryArgs, home: Path) -> None:
        pass

    def credentials(self, args: MemoryArgs, home: Path) -> dict[str, str]:
        return {}

    def has(self, release: Release, home: Path) -> bool:
        return True

    def prepare(
        self, target: str, args: MemoryArgs, release: Release, taken: Collection[str], home: Path
    ) -> MemoryRevision:
        names = (
            release.version if n == 1 else f"{release.version}.{n}" for n in itertools.count(1)
        )
        name = next(name for name in names if name not in taken)
        return MemoryRevision(name=name, release=release, url=f"http://{name}")

    def start(self, revision: Revision, home: Path) -> MemoryPulse:
        world = WORLDS[home]
        with world.effect(f"start {revision.name}"):
            world.running[revision.name] = MemoryRevision(**dict(revision))
        return MemoryPulse(world, revision.name)

    def answers(self, revision: Revision) -> bool:
        [world] = [world for world in WORLDS.values() if revision.name in world.running] or [None]
        return (
            world is not None
            and world.version(revision.name).starts
            and world.version(revision.name).answers
        )

    def is_well(self, revision: Revision, home: Path) -> bool:
        return revision.name in WORLDS[home].running

    def stop(self, revision: Revision, home: Path) -> None:
        self.stop_named("", revision.name, home)

    def running(self, target: str, home: Path) -> set[str]:
        return set(WORLDS[home].running)

    def stop_named(self, target: str, name: str, home: Path) -> None:
        world = WORLDS[home]
        with world.effect(f"stop {name}"):
            world.running.pop(name, None)

    def route(self, target: str, args: MemoryArgs, shares: Sequence[Share], home: Path) -> None:
        world = WORLDS[home]
        wanted = {share.revision.name: (share.weight, share.draining) for share in shares}
        if wanted == world.routes:
            return
        with world.effect(f"route {wanted}"):
            world.routes = wanted

    def routed(self, target: str, args: MemoryArgs, shares: Sequence[Share], home: Path) -> bool:
        return {one.revision.name: (one.weight, one.draining) for one in shares} == WORLDS[
            home
        ].routes

    def in_flight(self, target: str, revision: Revision, home: Path) -> int:
        return WORLDS[home].in_flight.get(revision.name, 0)

    def traffic(self, target: str, home: Path) -> MemoryTraffic:
        return MemoryTraffic(WORLDS[home])

    def free_memory(self) -> int | None:
        return min(world.free for world in WORLDS.values())

    def close(self, target: str, home: Path) -> None:
        WORLDS[home].routes = {}
