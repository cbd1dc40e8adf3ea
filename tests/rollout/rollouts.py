"""What the tests of rollouts share: a registry whose alias can be moved, and a target on a machine
in memory.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stand_ins import target as memory
from tests.stand_ins.target import WORLDS, Crash, Version, World
from tests.tasks.made import measured
from weighbridge.core import plugins
from weighbridge.core.errors import Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding, LedgerEntry
from weighbridge.rollout import canary, probe, rollout
from weighbridge.rollout.managed_target import ManagedTarget, open_target
from weighbridge.rollout.outbox import Outbox
from weighbridge.rollout.probe import ProbeAnswer, ProbeQuestion
from weighbridge.rollout.reconcile import ReconcileResult, reconcile
from weighbridge.rollout.state import TargetState
from weighbridge.serving.targets.home_records import HomeRecords
from weighbridge.serving.targets.records import STATE
from weighbridge.serving.targets.shared_records import SharedRecords

QUESTIONS = [
    ProbeQuestion(prompt=f"q{n}", reference=f"a{n}", answer=f"a{n}", scores={"exact_match": 1.0})
    for n in range(16)
]


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry."""

    name: str
    version: str
    tags: Mapping[str, str]
    digest: str = "sha256:0"


@dataclass
class FakeRegistry:
    """The registry, as far as a rollout needs it."""

    alias: str = ""
    down: bool = False
    ledger: list[LedgerEntry] = field(default_factory=list)
    peak_memory: dict[str, int] = field(default_factory=dict)
    unweighed: set[str] = field(default_factory=set)
    misspelt: dict[str, str] = field(default_factory=dict)

    def desired_version(self, model: str) -> RegisteredVersion | None:
        if self.down:
            raise Unavailable("reading the alias", "MLflow does not answer")
        tags = {"bento": f"demo:{self.alias}", "bento_digest": f"sha256:{self.alias}"}
        return RegisteredVersion(model, self.alias, tags) if self.alias else None

    def misspelt_champions(self, model: str) -> dict[str, str]:
        return self.misspelt

    def bindings(self) -> list[Binding]:
        return []  # what a machine is called with is in force

    def measurement_of(self, version: RegisteredVersion) -> str | None:
        if version.version in self.unweighed:
            return None
        return measured(
            "gguf-Q8_0", memory=self.peak_memory.get(version.version, 0)
        ).model_dump_json()

    def mirror(self, entries: Sequence[LedgerEntry]) -> None:
        if self.down:
            raise Unavailable("writing the ledger", "MLflow does not answer")
        self.ledger += entries

    def outcomes(self) -> list[str]:
        return [entry.fields["outcome"] for entry in self.ledger if entry.event == "end"]


class Shop(ABC):
    """A target `shop`, and the registry that says what serves there."""

    workspace: Workspace
    registry: FakeRegistry

    @property
    @abstractmethod
    def binding(self) -> Binding:
        """The arguments that the registry has of it."""

    @property
    def managed(self) -> ManagedTarget:
        managed = open_target("shop", self.workspace)
        assert managed is not None
        return managed

    @property
    def state(self) -> TargetState[Any]:
        return self.managed.load_state()

    def reconcile(self, **options: Any) -> ReconcileResult:
        return reconcile(self.binding, self.registry, self.workspace, "test", **options)  # type: ignore[arg-type]

    def promote(self, version: str, **options: Any) -> ReconcileResult:
        self.registry.alias = version
        return self.reconcile(**options)


@dataclass
class Machine(Shop):
    """A target `shop` on a machine in memory."""

    workspace: Workspace
    world: World
    registry: FakeRegistry
    policy: dict[str, Any]
    kind: str = "memory"
    """Of the target."""

    @property
    def binding(self) -> Binding:
        deploy = {"name": "shop", "target": {"kind": self.kind}, "rollout": self.policy}
        return Binding(target="shop", model="demo", deploy=deploy)

    def serves(self) -> str:
        """The version with all the traffic."""
        [(name, route)] = [(name, route) for name, route in self.world.routes.items() if route[0]]
        assert route[0] == 100
        return name.partition(".")[0]


@contextmanager
def machine(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, **policy: Any
) -> Iterator[Machine]:
    """Quick steps; what is written down counts as an effect as well."""
    home = workspace.settings.home
    WORLDS[home] = world = World()
    monkeypatch.setitem(plugins.BUILT_IN["target"], "memory", memory.PATH)
    monkeypatch.setattr(rollout, "POLL", 0.0005)
    monkeypatch.setattr(probe, "questions_of", lambda measurement, store, count: QUESTIONS[:count])
    monkeypatch.setattr(
        canary, "Client", lambda url, timeout: _Client(world.version(url.removeprefix("http://")))
    )
    monkeypatch.setattr(
        probe, "ask", lambda url, questions, **options: _answer(world, url, questions)
    )
    monkeypatch.setattr(Outbox, "write", _counted(world, Outbox.write, "write"))
    for records in (HomeRecords, SharedRecords):
        monkeypatch.setattr(records, "change", _counted_of_state(world, records.change))
    quick = {
        "step_seconds": 0,
        "step_deadline": 2,
        "probe_deadline": 2,
        "start_deadline": 1,
        "min_requests": 5,
        "drain_seconds": 0.05,
    }
    try:
        yield Machine(workspace, world, FakeRegistry(), {**quick, **policy})
    finally:
        del WORLDS[home]


def _counted(world: World, original: Any, name: str) -> Any:
    def effect(*args: Any, **kwargs: Any) -> Any:
        with world.effect(name):
            return original(*args, **kwargs)

    return effect


def _counted_of_state(world: World, original: Any) -> Any:
    """What is written of the state is an effect; commands are somebody else's doing."""
    counted = _counted(world, original, "state")

    def change(records: Any, name: str, change: Any) -> Any:
        return (counted if name == STATE else original)(records, name, change)

    return change


def _answer(world: World, url: str, questions: Sequence[ProbeQuestion]) -> list[ProbeAnswer]:
    version = world.version(url.removeprefix("http://"))
    failed = version.error_share == 1
    return [
        ProbeAnswer(question=question, problem="HTTP 500")
        if failed
        else ProbeAnswer(question=question, text="]] of" if version.garbage else question.answer)
        for question in questions
    ]


class _Client:
    def __init__(self, version: Version) -> None:
        self._version = version

    def ask(self, prompt: object, **options: object) -> SimpleNamespace:
        if random.random() < self._version.error_share:
            raise Unavailable("asking", "HTTP 500")
        return SimpleNamespace(text="an answer")


__all__ = ["Crash", "Machine", "machine"]
