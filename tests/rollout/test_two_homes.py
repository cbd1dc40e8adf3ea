"""Two homes that deploy to one target, whose records lie with it: one goes on where the other was
killed, and no two act at once.
"""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rollout.faults import (
    Watched,
    again,
    bad,
    check_quiet,
    good,
    heal,
    next_process,
    strike,
    swap,
    watched,
)
from tests.rollout.rollouts import Machine
from tests.stand_ins import shared_place
from tests.stand_ins.shared_place import PLACES, MemoryPlace
from tests.stand_ins.target import WORLDS, Fault
from weighbridge.core import plugins
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import operator_commands, target_operations, target_status
from weighbridge.rollout.interrupted_rollouts import recover
from weighbridge.rollout.managed_target import open_target
from weighbridge.rollout.reconcile import managed_target_of
from weighbridge.rollout.rollout import Rollout
from weighbridge.rollout.state import known_targets
from weighbridge.serving.targets.records import STATE, LockLost
from weighbridge.serving.targets.shared_records import SharedRecords


class TwoHomes:
    """Homes `a` and `b` with one MLflow and one target."""

    def __init__(self, a: Machine, place: MemoryPlace, folder: Path) -> None:
        self.a, self.place, self._folder = a, place, folder
        self.new_home()

    def new_home(self) -> None:
        """Have `b` be a home that has never heard of the target."""
        home = self._folder / "b"
        shutil.rmtree(home, ignore_errors=True)
        WORLDS[home] = self.a.world
        self.b = replace(self.a, workspace=Workspace(Settings(home=home)))

    def kill_a(self, fault: Fault, act: Callable[[], object]) -> None:
        """Have `a` die at an effect: its lease is neither renewed nor given back."""
        world = self.a.world
        assert isinstance(world, Watched)
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(self.place, "write_lease", self._unless_dead(world))
            strike(self.a, fault, act)
        self.place.let_lease_run_out()

    def _unless_dead(self, world: Watched) -> Callable[..., str]:
        write = self.place.write_lease

        def write_lease(*args: Any) -> str:
            if world.dead:
                raise Unavailable("writing the lease", "its process is dead")
            return write(*args)

        return write_lease


@pytest.fixture
def homes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[TwoHomes]:
    monkeypatch.setattr(SharedRecords, "POLL", 0.01)
    monkeypatch.setitem(plugins.BUILT_IN["target"], "shared", shared_place.PATH)  # type: ignore[arg-type]
    with watched(workspace, monkeypatch, questions=4, exclude_harm="never") as shop:
        shop = replace(shop, kind="shared")
        place = PLACES[id(shop.world)] = MemoryPlace(f"records of {tmp_path}")
        assert isinstance(shop.world, Watched)
        shop.world.swapping = lambda: '"swap": true' in place.documents.get(STATE, "")  # type: ignore[method-assign]
        homes = TwoHomes(shop, place, tmp_path)
        yield homes
        assert shop.world.violations == []
        del PLACES[id(shop.world)]


@pytest.mark.parametrize(
    ("prepare", "kind"),
    [(good, "crash before"), (good, "crash after"), (bad, "crash after"), (swap, "crash after")],
)
def test_a_home_that_never_saw_the_target_goes_on_wherever_another_was_killed(
    homes: TwoHomes, prepare: Callable[[Machine], str], kind: Any
) -> None:
    serves = prepare(homes.a)
    start = _Start(homes)
    homes.a.promote("2")
    for number in range(len(homes.a.world.effects)):
        start.put()
        homes.kill_a(Fault(number, kind), lambda: homes.a.promote("2"))
        with _told(f"{kind} at {number}"):
            again(homes.b)
            check_quiet(homes.b, serves)
            # The first machine comes back, and has nothing to settle.
            next_process(homes.a)
            check_quiet(homes.a, serves)


def test_what_one_home_was_told_the_other_obeys(homes: TwoHomes) -> None:
    homes.a.promote("1")
    managed = managed_target_of(homes.b.binding, homes.b.workspace)
    operator_commands.issue(managed.records, "pause", "")
    result = homes.a.promote("2")
    assert (result.action, homes.a.serves()) == ("kept", "1")
    homes.b.reconcile()
    assert target_status.status(homes.b.workspace)[0].paused
    target_operations.command("shop", "resume", homes.b.workspace)
    assert homes.a.reconcile().action == "deployed"
    assert target_operations.rollback_version("shop", homes.b.workspace) == "1"


def test_a_home_knows_of_the_target_without_mlflow_once_it_has_looked_at_it(
    homes: TwoHomes,
) -> None:
    homes.a.promote("1")
    assert known_targets(homes.b.workspace.settings.home) == []
    homes.b.reconcile()
    homes.b.registry.down = True
    homes.b.world.routes.clear()
    homes.b.world.was_served = False
    recover(homes.b.workspace)
    assert homes.b.serves() == "1"
    assert homes.b.state.current == homes.a.state.current
    folder = homes.b.workspace.settings.home / "targets" / "shop"
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == [STATE]
    assert '"current": null' in (folder / STATE).read_text(), "what serves is kept in one place"


def test_the_latest_arguments_hold_whichever_home_they_were_given_to(homes: TwoHomes) -> None:
    homes.a.promote("1")
    given = {**homes.a.binding.deploy, "target": {"kind": "shared", "door": "locked"}}
    managed_target_of(homes.b.binding, homes.b.workspace).by(given).put_in_force()
    assert homes.a.world.door == "locked"
    homes.a.reconcile()  # by a binding that was read before
    assert homes.a.world.door == "locked"
    target = open_target("shop", homes.b.workspace)
    assert target is not None
    assert target.args.target.door == "locked"  # type: ignore[attr-defined]


def test_a_deployer_that_stood_still_while_another_took_over_does_nothing_more(
    homes: TwoHomes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    homes.a.promote("1")
    stands_still, goes_on = threading.Event(), threading.Event()
    problems: list[BaseException] = []
    name = threading.current_thread().name

    def pause(seconds: float) -> None:
        if threading.current_thread().name != name:
            stands_still.set()
            assert goes_on.wait(30)

    def promote() -> None:
        try:
            homes.a.promote("2")
        except LockLost as exc:
            problems.append(exc)

    monkeypatch.setattr(Rollout, "_pause", staticmethod(pause))
    first = threading.Thread(target=promote)
    first.start()
    assert stands_still.wait(30)
    assert homes.a.state.rollout is not None
    homes.place.let_lease_run_out()
    assert homes.b.reconcile().action == "deployed"
    effects, routes = list(homes.a.world.effects), dict(homes.a.world.routes)
    goes_on.set()
    first.join(30)
    [problem] = problems
    assert "another deployer has taken it" in str(problem)
    assert "is rolled back: deploying by" not in caplog.text
    assert (homes.a.world.effects[: len(effects)], homes.a.world.routes) == (effects, routes)
    assert set(homes.a.world.effects[len(effects) :]) <= {"mirror", "write", "state"}
    heal(homes.a)
    check_quiet(homes.b, "2")


def test_two_deployers_that_are_woken_at_once_deploy_once(homes: TwoHomes) -> None:
    homes.a.promote("1")
    homes.a.registry.alias = "2"
    both = [threading.Thread(target=home.reconcile) for home in (homes.a, homes.b)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(30)
    assert homes.a.registry.outcomes() == ["serving", "serving"]
    check_quiet(homes.b, "2")


def test_a_target_at_which_a_version_serves_can_not_become_another_place(homes: TwoHomes) -> None:
    homes.a.promote("1")
    elsewhere = replace(homes.a, kind="memory")
    with pytest.raises(BadInput, match=r"what serves there is known by records of .*a name of its"):
        elsewhere.reconcile()
    assert homes.a.serves() == "1"


def test_records_that_do_not_answer_are_told_and_what_serves_goes_on(homes: TwoHomes) -> None:
    homes.a.promote("1")
    homes.place.is_away = True
    with pytest.raises(Unavailable, match="it does not answer"):
        homes.a.promote("2")
    recover(homes.a.workspace)
    assert homes.a.serves() == "1"
    homes.place.is_away = False
    assert homes.a.reconcile().action == "deployed"


class _Start:
    """The target as it was, any number of times, and a home that does not know of it."""

    def __init__(self, homes: TwoHomes) -> None:
        self._homes, world = homes, homes.a.world
        self._documents = dict(homes.place.documents)
        self._running, self._routes = dict(world.running), dict(world.routes)
        heal(homes.a)

    def put(self) -> None:
        homes, world = self._homes, self._homes.a.world
        homes.place.write_documents(self._documents, homes.place.read_documents()[1])
        world.running, world.routes = dict(self._running), dict(self._routes)
        world.in_flight, world.may_pause, world.was_served = {}, False, True
        homes.a.registry.ledger.clear()
        homes.new_home()


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    try:
        yield
    except AssertionError as exc:
        exc.add_note(where)
        raise
