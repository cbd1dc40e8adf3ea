"""A promotion in MLflow, and what becomes of it at the address, with real services and 32 busy
clients.
"""

import contextlib
import hashlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from benchmarks.crowd import Crowd, Habits
from tests.conftest import MACHINE_CACHE
from tests.flows.live import LONG, MODEL, SELDOM, Live, settings
from tests.waiting import until
from weighbridge.core.errors import BadInput
from weighbridge.deployer.promotion import promote, rollback
from weighbridge.rollout import operator_commands, target_operations
from weighbridge.serving.reaper import marked

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_services")]
BACK = 30.0
"""Seconds within which what was killed answers again, also on a busy machine."""
HABITS = Habits(stream_tokens=LONG + 2)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Up, with two good versions, 1 and 2; some version of them serves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHBRIDGE_METRICS_PORT", "0")
        patch.setenv("WEIGHBRIDGE_CACHE", str(MACHINE_CACHE))
        patch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("bentoml")))
        patch.delenv("PREFECT_API_URL", raising=False)
        home = tmp_path_factory.mktemp("live")
        patch.setenv("WEIGHBRIDGE_HOME", str(home))
        machine = Live(settings(home, MACHINE_CACHE, reconcile_seconds=3))
        try:
            machine.platform.up()
            assert (machine.add(), machine.add()) == ("1", "2")
            machine.claim()
            machine.alias("1")
            machine.serves("1")
            yield machine
        finally:
            machine.platform.down()
    assert list(marked(f"{home}:")) == []


@pytest.fixture
def shop(live: Live, monkeypatch: pytest.MonkeyPatch) -> Live:
    """The same, quiet, with a good version serving by the usual policy."""
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(live.home))
    live.well()
    live.claim()
    live.alias(live.good)
    live.serves(live.good)
    until(
        lambda: not live.state.draining,
        90,
        lambda: f"nothing should drain: {live.state}",
        poll=SELDOM,
    )
    return live


def test_promoted_in_whatever_way_it_serves_and_no_request_is_lost(shop: Live) -> None:
    # A look that was due anyway may come before MLflow's hint; a command is noted before it moves.
    old, new = shop.good, shop.other
    by_itself, asked_for = {"webhook", "reconcile"}, {"promote"}
    ways: list[tuple[str, set[str], Callable[[], Any]]] = [
        (new, by_itself, lambda: shop.alias(new)),
        (old, by_itself, lambda: shop.alias(old, through="database")),
        (
            new,
            asked_for,
            lambda: promote(MODEL, new, shop.workspace).follow(
                shop.workspace, now=True, on_progress=print
            ),
        ),
        (old, by_itself, lambda: shop.alias(old)),
    ]
    begin = time.time()
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        for version, triggers, move in ways:
            began, asked = time.monotonic(), time.time()
            move()
            shop.serves(version)
            until(
                lambda version=version, began=began: crowd.first_answer(version, began),
                10,  # type: ignore[misc]
                lambda version=version: f"version {version} should answer",  # type: ignore[misc]
            )
            rollout = shop.rolled_out(version, asked)
            assert rollout.outcome == "serving"
            assert rollout.trigger in triggers
            assert (rollout.failed, rollout.cut) == (0, 0)
            assert rollout.requests > 50
    assert crowd.problems == []
    assert {one.version for one in crowd.requests if one.kind == "stream"} == {"1", "2"}
    shop.check_invariants()
    # Each move through the server was told to the deployer, and by it to Prefect.
    until(
        lambda: {event["payload"]["version"] for event in shop.events(begin)} == {old, new},
        30,
        lambda: f"Prefect should know of both moves: {shop.events(begin)}",
    )


def test_a_burst_of_promotions_ends_in_the_last_and_that_is_deployed_once(shop: Live) -> None:
    old, new, asked = shop.good, shop.other, time.time()
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        for number in [new, old] * 24 + [new]:
            shop.alias(number)
        shop.serves(new)
        shop.rolled_out(new, asked)
    assert crowd.problems == []
    outcomes = [one.outcome for one in shop.registry.history(MODEL) if one.began >= asked]
    assert outcomes.count("serving") == 1
    assert set(outcomes) <= {"serving", "superseded"}


def test_an_alias_that_is_gone_takes_nothing_away(shop: Live) -> None:
    old = shop.good
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        shop.no_alias()
        until(
            lambda: "no version" in shop.state.reason,
            30,
            lambda: f"it should be said: {shop.state}",
        )
        shop.serves(old)
    assert crowd.problems == []


@dataclass(frozen=True)
class Bad:
    """What is wrong with a version, how that is found, and what part of all requests it may cost at
    most.
    """

    faults: dict[str, Any]
    why: str
    policy: dict[str, Any] = field(default_factory=dict)
    cost: float = 0.0
    in_traffic: bool = True


BAD = {
    "never starts": Bad(
        {"die_loading": "no such tensor: blk.7"}, "no such tensor: blk.7", in_traffic=False
    ),
    "never gets ready": Bad(
        {"never_ready": True}, "no completion", {"start_deadline": 6}, in_traffic=False
    ),
    "garbage": Bad({"garbage": True}, "its answers", in_traffic=False),
    # One in twenty of what the new version answers, which is at most everything; none of the
    # probe's questions.
    "errors": Bad({"error_every": 20}, "fails more often", {"step_seconds": 5}, cost=0.05),
    "slow": Bad({"first_delay": 0.25}, "slower"),
    # What it has under way when it dies: 10 % of the traffic.
    "dies": Bad(
        {"die_seconds": 10.0}, "out of memory: the stand-in dies", {"step_seconds": 15}, cost=0.03
    ),
    # To take memory takes time as well, and that is not what is to be found.
    "eats memory": Bad({"leak": 32}, "of memory", {"step_seconds": 15, "max_latency_ratio": 100}),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_version_is_rolled_back_and_the_old_one_goes_on(shop: Live, how: str) -> None:
    bad, old = BAD[how], shop.good
    number, asked = shop.add(**bad.faults), time.time()
    shop.claim(**bad.policy)
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        shop.alias(number)
        rollout = shop.failed(number, asked)
        began = time.monotonic()
        shop.alias(old)
        until(lambda: len(crowd.since(began)) > 50, 30, lambda: f"version {old} should answer")
        assert {one.version for one in crowd.since(began)} == {old}
    assert bad.why in rollout.detail
    assert rollout.previous == old
    assert bad.in_traffic == any(line.event == "shift" for line in rollout.events)
    # What a version breaks off that dies has its name; what was about to be sent to it may have
    # none.
    assert {one.version for one in crowd.problems} <= ({number, ""} if bad.cost else set()), (
        crowd.summary()
    )
    assert len(crowd.problems) <= bad.cost * len(crowd.requests), crowd.summary()
    shop.serves(old)
    shop.check_invariants()


PHASES = ("start", "probe", "shift")


@pytest.mark.parametrize(
    "victims",
    [
        ("deployer", "prefect", "mlflow"),
        ("prefect", "mlflow", "deployer"),
        ("mlflow", "deployer", "prefect"),
        ("gateway", "old", "gateway"),
        ("old", "gateway", "old"),
    ],
    ids="-".join,
)
def test_whoever_is_killed_while_a_version_is_rolled_out_it_serves_at_last(
    shop: Live, victims: tuple[str, ...]
) -> None:
    """Everybody dies in every phase: one rollout loses one of them in each."""
    shop.claim(step_seconds=2)
    killed = []
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        until(lambda: len(crowd.requests) > 20, 30, lambda: "clients should be answered")
        new, asked = shop.other, time.time()
        shop.alias(new)
        for phase, victim in zip(PHASES, victims, strict=True):
            shop.phase(phase)
            killed.append(time.monotonic())
            shop.kill(program(shop, victim))
        shop.serves(new, 180)
        shop.well()
    if "gateway" not in victims:
        assert crowd.problems == [], crowd.summary()
    check_losses(crowd, killed)
    check_end(shop, new, asked)


@pytest.mark.parametrize("phase", PHASES)
def test_a_version_that_is_killed_while_it_is_rolled_out_serves_once_it_is_asked_for_again(
    shop: Live, phase: str
) -> None:
    shop.claim(step_seconds=2)
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        until(lambda: len(crowd.requests) > 20, 30, lambda: "clients should be answered")
        new, asked = shop.other, time.time()
        shop.alias(new)
        shop.phase(phase)
        killed = time.monotonic()
        shop.kill(program(shop, "new"))
        shop.failed(new, asked)
        shop.alias(new)
        shop.serves(new, 180)
        shop.well()
    if phase != "shift":
        assert crowd.problems == [], crowd.summary()
    check_losses(crowd, [killed])
    check_end(shop, new, asked)


def program(shop: Live, victim: str) -> str:
    """The program of a service, or of the old or the new version of the rollout under way."""
    rollout = shop.state.rollout
    assert rollout is not None
    names = {"old": f"shop@{rollout.previous.name}", "new": f"shop@{rollout.next.name}"}
    return names.get(victim, victim)


def check_losses(crowd: Crowd, killed: list[float]) -> None:
    """Of what is killed while it answers, those answers are lost, and what knocks until supervisord
    has it back.
    """
    lost = [one.ended for one in crowd.problems]
    assert all(any(at <= end <= at + BACK for at in killed) for end in lost), crowd.summary()


def check_end(shop: Live, version: str, since: float) -> None:
    """All is in order, and the ledger knows how every rollout ended."""
    shop.check_invariants()
    shop.rolled_out(version, since)
    assert all(one.outcome != "begun" for one in shop.registry.history(MODEL))


def test_prefect_and_mlflow_down_do_not_matter_to_who_asks(shop: Live) -> None:
    """Stopped, not killed: they take connections and never answer."""
    new, pids = shop.other, [shop.pid("prefect"), shop.pid("mlflow")]
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(8)
            shop.alias(new, through="database")
            shop.serves(new, 90)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
    assert crowd.problems == []
    shop.well()


class Stranger:
    """Asks without a key, again and again, from when it is entered; what it was told, in order."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.told: list[int | str] = []

    def __enter__(self) -> "Stranger":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            try:
                self.told.append(models(self._url))
            except httpx.HTTPError as exc:
                self.told.append(type(exc).__name__)


def models(url: str, key: str = "") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.get(f"{url}/v1/models", headers=headers, trust_env=False, timeout=10).status_code


def test_keys_that_a_release_only_added_hold_whatever_dies(shop: Live, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"first").hexdigest())
    assert models(shop.url) == 200
    shop.keep_address(api_keys=str(keys))
    try:
        with Stranger(shop.url) as stranger:
            shop.kill("gateway")
            until(lambda: answers(shop, "first"), BACK)
            keys.write_text(hashlib.sha256(b"second").hexdigest())
            until(lambda: answers(shop, "second"), BACK)
            assert models(shop.url, "first") == 401
            with contextlib.closing(sqlite3.connect(shop.home / "mlflow.db")) as mlflow:
                mlflow.execute("BEGIN EXCLUSIVE")  # MLflow is away
                shop.kill("deployer")
                shop.kill("gateway")
                since = time.time()
                until(lambda: shop.deployer_began() > since, BACK)
                until(lambda: answers(shop, "second"), BACK)
                time.sleep(1)
            assert models(shop.url, "first") == 401
        assert stranger.told.count(401) > 10
        # While haproxy is started again nobody listens.
        assert set(stranger.told) <= {401, "ConnectError", "ReadError", "RemoteProtocolError"}
    finally:
        shop.keep_address()
        shop.well()
    until(lambda: models(shop.url) == 200, BACK)


def answers(shop: Live, key: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return models(shop.url, key) == 200
    return False


def test_hints_that_nobody_took_are_made_up_for(shop: Live) -> None:
    """Longer than MLflow tries to deliver them."""
    old, new, deployer = shop.good, shop.other, shop.pid("deployer")
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        os.kill(deployer, signal.SIGSTOP)
        try:
            shop.alias(old)
            shop.alias(new)
            time.sleep(12)
        finally:
            os.kill(deployer, signal.SIGCONT)
        shop.serves(new)
    assert crowd.problems == []


def test_where_memory_holds_one_version_the_old_one_comes_back_when_the_new_one_fails(
    shop: Live,
) -> None:
    """Nobody answers meanwhile, and that is said with the time to come back at."""
    number, asked, old = shop.add(garbage=True), time.time(), shop.good
    shop.claim(memory_reserve=1 << 50)
    with Crowd(shop.url, HABITS, model=MODEL) as crowd:
        shop.alias(number)
        rollout = shop.failed(number, asked)
        shop.alias(old)
        shop.serves(old)
    assert [line.event for line in rollout.events if line.event in ("swap", "probe", "back")] == [
        "swap",
        "probe",
        "back",
    ]
    assert 0 < rollout.evidence["restore_seconds"] < 60
    assert {one.problem for one in crowd.problems} == {"HTTP 503"}
    assert [
        one.kind for one in crowd.requests if one.kind == "stream" and one.problem == "truncated"
    ] == []
    shop.check_invariants()


class Walk(RuleBasedStateMachine):
    """People and mishaps at a machine whose clients never stop; nothing of it may cost one of them
    an answer.
    """

    shop: ClassVar[Live]
    bad: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.crowd = Crowd(self.shop.url, HABITS, model=MODEL).__enter__()

    @rule(version=st.sampled_from(["1", "2"]), through=st.sampled_from(["mlflow", "database"]))
    def promote(self, version: str, through: str) -> None:
        self.shop.well()
        self.shop.alias(version, through=through)

    @rule()
    def promote_a_bad_one(self) -> None:
        self.shop.well()
        self.shop.alias(self.bad)

    @rule()
    def roll_back(self) -> None:
        with contextlib.suppress(BadInput):  # nothing served before
            rollback(MODEL, self.shop.workspace)

    @rule(command=st.sampled_from(["pause", "resume", "now", "abort"]))
    def give_command(self, command: operator_commands.Command) -> None:
        target_operations.command(MODEL, command, self.shop.workspace)

    @rule(victim=st.sampled_from(["deployer", "prefect", "mlflow"]))
    def kill(self, victim: str) -> None:
        self.shop.well()
        self.shop.kill(victim)

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        time.sleep(seconds)

    @invariant()
    def every_request_was_answered(self) -> None:
        assert self.crowd.problems == [], self.crowd.summary()

    def teardown(self) -> None:
        self.shop.well()
        self.give_command("resume")
        self.shop.alias("2")
        self.shop.serves("2", 180)
        self.crowd.__exit__()
        assert self.crowd.problems == [], self.crowd.summary()
        self.shop.check_invariants()


def test_whatever_people_do_while_services_die_no_request_is_lost_and_the_desired_version_serves(
    shop: Live,
) -> None:
    Walk.shop, Walk.bad = shop, shop.add(garbage=True)
    # One walk in these minutes; thousands without real processes:
    # tests/rollout/test_rollout_walk.py.
    walk = hypothesis.settings(
        derandomize=True,
        max_examples=1,
        stateful_step_count=12,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(Walk, settings=walk)
