"""promote, rollback, pause, resume, abort, history: with a deployer and without one."""

import json
import re
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from tests.rollout.rollouts import FakeRegistry, Machine, RegisteredVersion, machine
from tests.stand_ins.target import Version
from tests.waiting import until
from weighbridge.cli.main import cli
from weighbridge.core.errors import BadInput, GateFailed
from weighbridge.core.service_addresses import Addresses
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.deployer import promotion
from weighbridge.deployer.deployer import Deployer
from weighbridge.registry import Binding
from weighbridge.registry.ledger import RolloutRecord, record_of
from weighbridge.rollout import operator_commands, rollout, target_operations, target_status


class Models(FakeRegistry):
    """A registry with one model, whose champion serves at one target."""

    shop: Machine
    unbuilt: frozenset[str] = frozenset()

    def join(self, doing: str) -> str:
        return ""

    def version(self, name: str, which: str) -> RegisteredVersion:
        if name != "demo" or not which.isdigit():
            raise BadInput(f"looking for '{name}@{which}'", "MLflow has no such model or alias")
        tags = {"bento": f"demo:{which}", "bento_digest": f"sha256:{which}"}
        return RegisteredVersion(name, which, {} if which in self.unbuilt else tags)

    def promote(self, version: RegisteredVersion) -> None:
        self.alias = version.version

    def bindings(self) -> list[Binding]:
        return [self.shop.binding]

    def binding(self, target: str) -> Binding | None:
        return self.shop.binding if target == self.shop.binding.target else None

    def history(self, target: str, limit: int) -> list[RolloutRecord]:
        ids = dict.fromkeys(entry.rollout for entry in self.ledger)
        return [
            record_of(entry for entry in self.ledger if entry.rollout == rollout) for rollout in ids
        ]


@pytest.fixture
def shop(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(workspace, monkeypatch) as shop:
        models = shop.registry = Models()
        models.shop = shop
        monkeypatch.setattr(promotion, "Registry", SimpleNamespace(connect=lambda settings: models))
        monkeypatch.setattr(promotion, "POLL", 0.01)
        yield shop
        assert shop.world.violations == []


@pytest.fixture
def deployer(shop: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployer]:
    """One in this process, which the commands find where `up` writes it down."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("WEIGHBRIDGE_DEPLOYER_PORT", "0")
    deployer = Deployer(
        Workspace(Settings()), connect=lambda settings: shop.registry, announce=lambda event: None
    )  # type: ignore[arg-type,return-value]
    deployer.start()
    deployer.reconcile()
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            deployer.wait_and_reconcile()

    thread = threading.Thread(target=run)
    thread.start()
    path = shop.workspace.settings.home / "run" / "platform.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    port = int(deployer.url.rpartition(":")[2])
    path.write_text(Addresses(prefect=1, mlflow=1, deployer=port).model_dump_json())
    yield deployer
    over.set()
    deployer.wake("", "end")
    thread.join()
    deployer.stop()


def weighbridge(*arguments: str) -> str:
    """What a command prints; its error is raised."""
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def settled(shop: Machine) -> str:
    """The version that serves once nothing is being rolled out; empty before."""
    [status] = target_status.status(shop.workspace) or [None]
    return status.serving.version if status and status.serving and not status.rollout else ""


def test_promote_without_a_deployer_rolls_out_in_this_process(shop: Machine) -> None:
    output = weighbridge("promote", "demo", "1")
    assert "champion of demo is version 1" in output
    assert re.search(r"version 1 serves at shop after \d+\.\d s", output)
    assert shop.serves() == "1"
    [end] = [entry for entry in shop.registry.ledger if entry.event == "begin"]
    assert end.fields["trigger"] == "promote"


def test_promote_wakes_the_deployer_and_waits_for_it(shop: Machine, deployer: Deployer) -> None:
    began = time.monotonic()
    weighbridge("promote", "demo", "1")
    weighbridge("promote", "demo", "2")
    assert shop.serves() == "2"
    assert time.monotonic() - began < Settings().reconcile_seconds
    # It is written down a moment after the rollout has ended.
    until(lambda: deployer.status()["targets"]["shop"]["version"] == "2")


def test_what_a_step_waits_for_is_told_by_promote_and_status_and_gone_with_the_step(
    shop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighbridge("promote", "demo", "1")
    monkeypatch.setattr(rollout, "TELL_EVERY", 0.0)
    shop.world.busy = False
    shop.policy |= {"exclude_harm": "always", "step_deadline": 60}
    told: list[str] = []

    def go_on_once_told(text: str) -> None:
        if not told and "10 % of new requests (not excluded yet: 20 points of extra" in text:
            told.append(" ".join(weighbridge("status").split()))
            target_operations.command("shop", "now", shop.workspace)

    promotion.promote("demo", "2", shop.workspace).follow(
        shop.workspace, now=False, on_progress=go_on_once_told
    )
    assert "waits: not excluded yet: 20 points of extra errors" in told[0]
    assert "waits" not in weighbridge("status")
    assert shop.serves() == "2"


@pytest.mark.usefixtures("deployer")
def test_a_deployer_that_does_not_begin_is_told_from_an_alias_that_has_moved_on(
    shop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighbridge("promote", "demo", "1")
    monkeypatch.setattr(promotion, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(promotion.service_addresses, "wake_deployer", lambda *_: True)
    with pytest.raises(
        GateFailed, match=r"has not begun it; see: weighbridge logs deployer; version 1 goes on"
    ):
        weighbridge("promote", "demo", "2")


@pytest.mark.parametrize("with_deployer", [True, False])
def test_a_version_that_does_not_hold_ends_with_3_and_says_why(
    shop: Machine, with_deployer: bool, request: pytest.FixtureRequest
) -> None:
    if with_deployer:
        request.getfixturevalue("deployer")
    weighbridge("promote", "demo", "1")
    shop.world.versions["2"] = Version(garbage=True)
    with pytest.raises(
        GateFailed, match=r"serving demo 2 at shop: its answers.*; version 1 goes on serving"
    ) as stop:
        weighbridge("promote", "demo", "2")
    assert stop.value.exit_code == 3
    assert shop.serves() == "1"


def test_promote_of_an_unknown_version_changes_nothing(shop: Machine) -> None:
    weighbridge("promote", "demo", "1")
    with pytest.raises(BadInput, match="no such model or alias"):
        weighbridge("promote", "demo", "nobody")
    assert shop.registry.alias == "1"


def test_promote_of_what_cannot_be_served_leaves_the_alias_where_it_is(shop: Machine) -> None:
    weighbridge("promote", "demo", "1")
    shop.registry.unbuilt = frozenset({"2"})  # type: ignore[attr-defined]
    shop.registry.unweighed.add("2")
    with pytest.raises(BadInput, match="promoting demo 2: it has no Bento and was never weighed"):
        weighbridge("promote", "demo", "2")
    assert (shop.registry.alias, shop.serves()) == ("1", "1")


def test_no_wait_returns_at_once(shop: Machine, deployer: Deployer) -> None:
    weighbridge("promote", "demo", "1", "--no-wait")
    until(lambda: settled(shop) == "1")


def test_no_wait_without_a_deployer_says_that_nothing_happens(shop: Machine) -> None:
    assert "no deployer runs" in weighbridge("promote", "demo", "1", "--no-wait")
    assert shop.world.routes == {}


def test_now_skips_the_steps(shop: Machine) -> None:
    weighbridge("promote", "demo", "1")
    shop.policy["step_seconds"] = 600
    weighbridge("promote", "demo", "2", "--now")
    assert shop.serves() == "2"


def test_rollback_goes_back_to_the_version_before_and_again_forward(shop: Machine) -> None:
    weighbridge("promote", "demo", "1")
    weighbridge("promote", "demo", "2")
    assert "champion of demo is version 1" in weighbridge("rollback", "shop")
    assert (shop.serves(), shop.registry.alias) == ("1", "1")
    weighbridge("rollback", "shop")
    assert (shop.serves(), shop.registry.alias) == ("2", "2")


def test_rollback_skips_the_canary_and_no_later_promotion_of_that_version_does(
    shop: Machine,
) -> None:
    weighbridge("promote", "demo", "1")
    weighbridge("promote", "demo", "2")
    weighbridge("rollback", "shop")
    weighbridge("promote", "demo", "2")
    weighbridge("promote", "demo", "1")
    begun = [entry for entry in shop.registry.ledger if entry.event == "begin"]
    assert [entry.fields["trigger"] for entry in begun] == [
        "promote",
        "promote",
        "rollback",
        "promote",
        "promote",
    ]


def test_rollback_takes_back_what_is_being_rolled_out_even_paused(
    shop: Machine, deployer: Deployer
) -> None:
    weighbridge("promote", "demo", "1")
    shop.policy["step_seconds"] = 600
    weighbridge("promote", "demo", "2", "--no-wait")
    until(lambda: shop.state.rollout is not None and shop.state.rollout.share)
    assert "paused" in weighbridge("pause", "shop")
    weighbridge("rollback", "shop")
    assert (shop.serves(), shop.registry.alias) == ("1", "1")
    assert shop.state.rollout is None


def test_rollback_of_the_first_version_says_that_there_is_none_before(shop: Machine) -> None:
    weighbridge("promote", "demo", "1")
    with pytest.raises(BadInput, match="no version served there before"):
        weighbridge("rollback", "shop")


def test_abort_keeps_the_old_version_and_leaves_the_alias(
    shop: Machine, deployer: Deployer
) -> None:
    weighbridge("promote", "demo", "1")
    shop.policy["step_seconds"] = 600
    weighbridge("promote", "demo", "2", "--no-wait")
    until(lambda: shop.state.rollout is not None and shop.state.rollout.share)
    assert "version 2 to shop is rolled back" in weighbridge("abort", "shop")
    until(lambda: shop.state.rollout is None and shop.managed.is_routed())
    assert (shop.serves(), shop.registry.alias) == ("1", "2")


def test_paused_targets_begin_nothing_until_resumed(shop: Machine, deployer: Deployer) -> None:
    weighbridge("promote", "demo", "1")
    weighbridge("pause", "shop")
    weighbridge("pause", "shop")
    with pytest.raises(GateFailed, match=r"the target is paused: `weighbridge resume shop`"):
        weighbridge("promote", "demo", "2")
    assert operator_commands.read(shop.managed.records).paused
    weighbridge("resume", "shop")
    until(lambda: settled(shop) == "2")


@pytest.mark.parametrize("command", ["rollback", "pause", "resume", "abort", "history"])
def test_an_unknown_target_is_named(shop: Machine, command: str) -> None:
    with pytest.raises(BadInput, match="'nowhere'"):
        weighbridge(command, "nowhere")


def test_history_shows_every_rollout_newest_first(shop: Machine) -> None:
    weighbridge("promote", "demo", "1")
    shop.world.versions["2"] = Version(garbage=True)
    with pytest.raises(GateFailed):
        weighbridge("promote", "demo", "2")
    rollouts = json.loads(weighbridge("history", "shop", "--json"))
    assert [(rollout["version"], rollout["outcome"]) for rollout in rollouts] == [
        ("2", "failed"),
        ("1", "serving"),
    ]
    assert rollouts[0]["previous"] == "1"
    assert "its answers" in rollouts[0]["detail"]
    shown = weighbridge("history", "shop").splitlines()
    assert len(shown) == 3
    assert "demo 2" in shown[1]
    assert "its answers" in shown[1]
    assert "demo 1" in shown[2]


def test_history_holds_what_mlflow_was_not_told_yet(shop: Machine) -> None:
    weighbridge("promote", "demo", "1")
    shop.managed.outbox.write(
        "r2", "begin", target="shop", model="demo", version="2", trigger="webhook"
    )
    rollouts = json.loads(weighbridge("history", "shop", "--json"))
    assert [(rollout["version"], rollout["outcome"]) for rollout in rollouts] == [
        ("2", "begun"),
        ("1", "serving"),
    ]
