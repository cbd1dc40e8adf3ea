"""A promotion in MLflow while services die, or do not answer: it is carried out at last, and only
what died loses anything.
"""

import contextlib
import hashlib
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path
from typing import ClassVar

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from benchmarks.crowd import Crowd
from tests.flows.live import MODEL, Live
from tests.flows.redeploy.conftest import HABITS
from tests.waiting import until
from weighbridge.core.errors import BadInput
from weighbridge.deployer.promotion import rollback
from weighbridge.rollout import operator_commands, target_operations

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_services")]
BACK = 30.0
"""Seconds within which what was killed answers again, also on a busy machine."""
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
        until(shop.deployer_is_idle, 30)
        os.kill(deployer, signal.SIGSTOP)
        try:
            shop.alias(old)
            shop.alias(new)
            time.sleep(12)
        finally:
            os.kill(deployer, signal.SIGCONT)
        shop.serves(new)
    assert crowd.problems == []


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
