"""Faults at a machine in memory: what a process leaves that dies or is lied to, and what the next
one makes of it.
"""

import contextlib
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from tests.rollout import rollouts
from tests.rollout.rollouts import FakeRegistry, Machine, machine
from tests.stand_ins.target import Crash, Fault, MemoryRevision, Version, World
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import canary, probe, rollout, target_operations
from weighbridge.rollout.interrupted_rollouts import recover
from weighbridge.rollout.outbox import Outbox
from weighbridge.rollout.probe import ProbeAnswer
from weighbridge.rollout.sequential_test import Judgement
from weighbridge.rollout.state import home_records, parse_state
from weighbridge.serving.targets.base import Revision
from weighbridge.serving.targets.records import STATE

KINDS = get_args(get_type_hints(Fault)["kind"])


class Watched(World):
    """A machine on which nobody may serve only from the begin of a swap until somebody serves
    again.
    """

    swapping: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self) -> None:
        super().__init__()
        self.acts: dict[int, Callable[[], object]] = {}
        """What somebody else does just before an effect, by its number."""

    @contextlib.contextmanager
    def effect(self, what: str) -> Iterator[None]:
        if act := self.acts.pop(len(self.effects), None):
            act()
        with super().effect(what):
            yield

    def check(self, after: str) -> None:
        serving = any(weight for weight, _ in self.routes.values())
        self.may_pause = self.swapping() or (self.may_pause and not serving)
        super().check(after)
        for name in self.in_flight.keys() - self.running.keys():
            self.violations.append(f"after {after}: {name} is stopped and had requests")

    @property
    def dead(self) -> bool:
        """Whether the process died at its fault: what it would do on its way out is not done
        either.
        """
        fault = self.fault
        return fault is not None and fault.kind.startswith("crash") and len(self.effects) > fault.at


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory, where the machine has one: on a disk each rename of a file waits."""
    shared_memory = Path("/dev/shm")
    where = shared_memory if shared_memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder)


@contextlib.contextmanager
def watched(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, **policy: Any
) -> Iterator[Machine]:
    """A machine on which what is asked of MLflow, and what is noted of it, are effects as well."""
    monkeypatch.setattr(rollouts, "World", Watched)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(probe, "judge", _judge)  # the metrics take seconds to load
    for module in (rollout, canary):
        monkeypatch.setattr(module, "ThreadPoolExecutor", _AtOnce)
    with machine(workspace, monkeypatch, **policy) as shop:
        world = shop.world
        assert isinstance(world, Watched)
        effects = (
            (FakeRegistry, "desired_version"),
            (FakeRegistry, "mirror"),
            (Outbox, "mirrored"),
        )
        for owner, name in effects:
            monkeypatch.setattr(owner, name, _counted(world, getattr(owner, name), name))
        world.swapping = _is_swapping(workspace.settings.home)  # type: ignore[method-assign]
        yield shop


class _AtOnce(Executor):
    """Does what is submitted at once: how often a rollout looks does not depend on the machine."""

    def __init__(self, workers: int) -> None:
        pass

    def submit(self, act: Any, /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(act(*args, **options))
        return future


def _judge(answered: Sequence[ProbeAnswer], measurement: object, **policy: object) -> Judgement:
    right = all(one.text == one.question.answer for one in answered)
    return Judgement(verdict="pass" if right else "fail", why="its answers are judged", evidence={})


def _counted(world: Watched, original: Any, name: str) -> Any:
    def effect(*args: Any, **kwargs: Any) -> Any:
        if world.dead:
            raise Crash(name)
        with world.effect(name):
            return original(*args, **kwargs)

    return effect


def _is_swapping(home: Path) -> Callable[[], bool]:
    """Whether the state that is written down tells of a swap; it is parsed when it has changed."""
    records = home_records("shop", home)
    known: tuple[bytes, bool] = (b"", False)

    def look() -> bool:
        nonlocal known
        content = records.read(STATE).content
        if content != known[0]:
            rollout = parse_state(content, Revision, records.place).rollout
            known = content, rollout is not None and rollout.swap
        return known[1]

    return look


@dataclass(frozen=True)
class Start:
    """A quiet machine to begin from, any number of times."""

    state: bytes
    running: dict[str, MemoryRevision]
    routes: dict[str, tuple[int, bool]]
    in_flight: dict[str, int]

    @classmethod
    def of(cls, shop: Machine) -> "Start":
        """As the machine is now."""
        path = shop.workspace.settings.home / "targets/shop/state.json"
        state, world = path.read_bytes() if path.exists() else b"", shop.world
        return cls(state, dict(world.running), dict(world.routes), dict(world.in_flight))

    def put(self, shop: Machine) -> None:
        """Have the machine be like this again."""
        folder = shop.workspace.settings.home / "targets/shop"
        shutil.rmtree(folder, ignore_errors=True)
        if self.state:
            folder.mkdir(parents=True)
            (folder / "state.json").write_bytes(self.state)
        world = shop.world
        world.running, world.routes, world.in_flight = (
            dict(self.running),
            dict(self.routes),
            dict(self.in_flight),
        )
        world.was_served, world.may_pause, world.dice = bool(self.routes), False, random.Random(7)
        random.seed(7)
        shop.registry.ledger.clear()
        heal(shop)


def heal(shop: Machine) -> None:
    """No fault any more; effects are counted from 0."""
    shop.world.fault = None
    shop.world.effects.clear()


def strike(shop: Machine, fault: Fault | None, act: Callable[[], object]) -> None:
    """Do something during which a fault happens, as a process does that may die of it."""
    heal(shop)
    shop.world.fault = fault
    with contextlib.suppress(Crash, WeighbridgeError):
        act()
    heal(shop)


def next_process(shop: Machine) -> None:
    """What a process does that starts: resolve what is left, then serve the desired version."""
    recover(shop.workspace)
    again(shop)


def again(shop: Machine) -> None:
    """What a living process does next; the requests that are under way end at last."""
    shop.reconcile(force=True)
    shop.world.in_flight.clear()
    while not target_operations.stop_drained("shop", shop.workspace):
        pass


def check_quiet(shop: Machine, version: str) -> None:
    """This version serves, nothing else runs, and the ledger says of each rollout once how it
    ended.
    """
    state = shop.state
    assert state.rollout is None
    assert state.draining == ()
    assert state.current is not None
    assert state.current.release.version == version
    assert shop.world.routes == {state.current.name: (100, False)}
    assert set(shop.world.running) == {state.current.name}
    assert shop.world.violations == []
    check_ledger(shop)


def check_ledger(shop: Machine) -> None:
    """Once everything is mirrored, as MLflow has it: the same line again is no second line."""
    shop.reconcile()
    lines = {(line.rollout, line.at, line.event): line for line in shop.registry.ledger}.values()
    begun = Counter(line.rollout for line in lines if line.event == "begin")
    ended = Counter(line.rollout for line in lines if line.event == "end")
    assert set(begun.values()) <= {1}
    assert ended == begun
    assert {line.rollout for line in lines} == begun.keys()
    assert shop.managed.outbox.unmirrored() == []


def good(shop: Machine) -> str:
    """Have version 1 serve, and name the version that is to serve next."""
    shop.promote("1")
    return "2"


def bad(shop: Machine) -> str:
    """Have version 2 fail half-way: the first goes on."""
    shop.world.versions["2"] = Version(error_share=0.8)
    shop.promote("1")
    return "1"


def swap(shop: Machine) -> str:
    """Leave room for one version alone."""
    shop.registry.peak_memory["2"] = 6 << 30
    shop.world.free = 5 << 30
    shop.promote("1")
    return "2"
