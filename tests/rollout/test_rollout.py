"""Rollouts on a machine in memory: good versions take over, bad ones never cost the old one
anything.
"""

from collections.abc import Iterator
from threading import Thread
from time import monotonic, sleep

import pytest

from tests.rollout.rollouts import Machine, machine
from tests.stand_ins.target import Version
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import operator_commands, target_operations, target_status
from weighbridge.rollout.reconcile import reconcile


@pytest.fixture
def shop(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with machine(workspace, monkeypatch) as shop:
        yield shop
        assert shop.world.violations == []


def test_the_first_version_gets_all_traffic(shop: Machine) -> None:
    assert shop.promote("1").action == "deployed"
    assert shop.serves() == "1"
    assert shop.registry.outcomes() == ["serving"]


def test_what_serves_already_is_left_alone(shop: Machine) -> None:
    shop.promote("1")
    done = len(shop.registry.ledger)
    assert shop.reconcile().action == "nothing"
    assert len(shop.registry.ledger) == done


def test_a_new_version_takes_over_by_steps_and_the_old_one_is_stopped(shop: Machine) -> None:
    shop.promote("1")
    result = shop.promote("2")
    assert (result.action, result.version) == ("deployed", "2")
    shares = [entry.fields["share"] for entry in shop.registry.ledger if entry.event == "shift"]
    assert shares == [10, 50, 100]
    assert shop.serves() == "2"
    assert set(shop.world.running) == {"2"}
    assert [release.version for release in shop.state.previous_releases] == ["1"]


@pytest.mark.parametrize(
    ("bad", "verdict"),
    [
        (Version(starts=False), "fail"),
        (Version(answers=False), "fail"),
        (Version(garbage=True), "fail"),
        (Version(error_share=0.3), "fail"),
        (Version(seconds=0.25), "fail"),
        (Version(dies_after=20), "fail"),
        (Version(memory=3 << 30), "fail"),
    ],
    ids=["never starts", "never ready", "garbage", "errors", "slow", "dies", "eats memory"],
)
def test_a_bad_version_is_rolled_back(shop: Machine, bad: Version, verdict: str) -> None:
    shop.policy |= {"min_requests": 300, "start_deadline": 0.2, "step_deadline": 20}
    shop.world.versions["2"] = bad
    shop.registry.peak_memory["2"] = 100 << 20
    shop.promote("1")
    result = shop.promote("2")
    assert (result.action, result.version) == ("failed", "1")
    assert shop.serves() == "1"
    assert set(shop.world.running) == {"1"}
    [_, end] = [entry for entry in shop.registry.ledger if entry.event == "end"]
    assert (end.fields["outcome"], end.fields["verdict"]) == ("failed", verdict)


def test_what_was_found_bad_is_not_tried_again_by_itself(shop: Machine) -> None:
    shop.world.versions["2"] = Version(starts=False)
    shop.promote("1")
    shop.promote("2")
    assert shop.reconcile().action == "kept"
    shop.world.versions["2"] = Version()
    assert shop.reconcile().action == "kept"
    assert shop.reconcile(force=True).action == "deployed"


def test_going_back_to_what_serves_is_done_at_once(shop: Machine) -> None:
    shop.world.versions["2"] = Version(starts=False)
    shop.promote("1")
    shop.promote("2")
    assert shop.promote("1").action == "nothing"
    assert shop.state.reason == ""


def test_without_traffic_the_versions_are_asked_questions(shop: Machine) -> None:
    shop.world.busy = False
    shop.promote("1")
    assert shop.promote("2").action == "deployed"
    shop.world.versions["3"] = Version(error_share=1.0)
    assert shop.promote("3").action == "failed"


def test_no_data_is_never_a_pass(shop: Machine) -> None:
    shop.policy["questions"] = 0
    shop.promote("1", force=True)
    assert shop.world.routes == {}
    [end] = [entry for entry in shop.registry.ledger if entry.event == "end"]
    assert (end.fields["outcome"], end.fields["verdict"]) == ("failed", "inconclusive")


def test_what_was_never_weighed_waits_for_a_person_where_the_policy_says_so(shop: Machine) -> None:
    shop.policy["on_inconclusive"] = "pause"
    shop.registry.unweighed.add("1")
    worker = Thread(target=shop.promote, args=("1",))
    worker.start()
    _until(
        lambda: (
            target_status.status(shop.workspace) and target_status.status(shop.workspace)[0].paused
        )
    )
    target_operations.command("shop", "now", shop.workspace)
    worker.join(10)
    assert shop.serves() == "1"


def test_the_newest_desired_version_wins_while_another_is_rolled_out(
    shop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.rollout.reconcile.ALIAS_POLL", 0.01)
    shop.promote("1")
    shop.policy["step_seconds"] = 30
    worker = Thread(target=shop.promote, args=("2",))
    worker.start()
    _until(lambda: shop.state.rollout is not None and shop.state.rollout.share == 10)
    shop.policy["step_seconds"] = 0
    shop.registry.alias = "1"
    worker.join(10)
    assert shop.serves() == "1"
    assert shop.registry.outcomes() == ["serving", "superseded"]


def test_commands_hold_in_every_phase_and_can_be_repeated(shop: Machine) -> None:
    shop.promote("1")
    for command in ("abort", "now", "resume"):
        target_operations.command(
            "shop", command, shop.workspace
        )  # nothing is being rolled out: nothing happens
    target_operations.command("shop", "pause", shop.workspace)
    target_operations.command("shop", "pause", shop.workspace)
    assert shop.promote("2").action == "kept"
    target_operations.command("shop", "resume", shop.workspace)
    assert shop.reconcile().action == "deployed"


@pytest.mark.parametrize(("command", "serves"), [("abort", "1"), ("now", "2")])
def test_a_person_can_end_a_rollout_either_way(shop: Machine, command: str, serves: str) -> None:
    shop.promote("1")
    shop.policy |= {"step_seconds": 30, "step_deadline": 60}
    worker = Thread(target=shop.promote, args=("2",))
    worker.start()
    _until(lambda: shop.state.rollout is not None and shop.state.rollout.share == 10)
    target_operations.command("shop", "pause", shop.workspace)
    target_operations.command("shop", command, shop.workspace)  # type: ignore[arg-type]
    worker.join(10)
    assert shop.serves() == serves


def test_where_memory_holds_one_the_old_one_is_stopped_first_and_comes_back(shop: Machine) -> None:
    shop.registry.peak_memory |= {"2": 6 << 30, "3": 6 << 30}
    shop.world.free = 5 << 30
    shop.world.may_pause = True
    shop.promote("1")
    shop.world.versions["2"] = Version(answers=False)
    assert shop.promote("2").action == "failed"
    assert shop.serves() == "1"
    assert shop.promote("3").action == "deployed"
    assert set(shop.world.running) == {"3"}
    restored = [entry.fields["evidence"] for entry in shop.registry.ledger if entry.event == "end"][
        1
    ]
    assert "restore_seconds" in restored


def test_long_answers_are_waited_for_and_cut_at_the_bound(shop: Machine) -> None:
    shop.policy["drain_seconds"] = 0.3
    shop.promote("1")
    shop.world.in_flight["1"] = 2
    shop.world.may_cut = True
    shop.promote("2")
    assert shop.world.routes["1"] == (0, True)
    assert "1" in shop.world.running
    began = monotonic()
    while not target_operations.stop_drained("shop", shop.workspace):
        sleep(0.01)
    assert 0.1 < monotonic() - began < 5
    assert set(shop.world.running) == {"2"}
    shop.reconcile()
    assert [entry.fields["cut"] for entry in shop.registry.ledger if entry.event == "stop"] == [2]


def test_without_mlflow_what_serves_goes_on_and_the_ledger_waits(shop: Machine) -> None:
    shop.promote("1")
    lines = len(shop.registry.ledger)
    shop.registry.alias = "2"
    mirror, shop.registry.mirror = shop.registry.mirror, _refuse  # type: ignore[method-assign]
    assert shop.reconcile().action == "deployed"
    assert len(shop.registry.ledger) == lines
    shop.registry.mirror = mirror  # type: ignore[method-assign]
    shop.reconcile()
    assert shop.registry.outcomes() == ["serving", "serving"]


def test_a_deleted_alias_changes_nothing(shop: Machine) -> None:
    shop.promote("1")
    assert shop.promote("").action == "kept"
    assert shop.serves() == "1"
    assert (
        "no version of demo has the alias champion"
        in target_status.status(shop.workspace)[0].detail
    )


def test_an_alias_that_is_nearly_champion_is_said_once_in_the_log_and_in_the_status(
    shop: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    shop.registry.misspelt = {"Champion": "2"}
    shop.promote("1")
    shop.reconcile()
    said = "alias 'Champion' of demo (version 2) does nothing"
    assert said in target_status.status(shop.workspace)[0].detail
    assert len([record for record in caplog.records if said in record.getMessage()]) == 1
    shop.registry.misspelt = {}
    shop.reconcile()
    assert target_status.status(shop.workspace)[0].detail == ""


def test_rolling_back_goes_to_the_version_before(shop: Machine) -> None:
    for version in "123":
        shop.promote(version)
    assert target_operations.rollback_version("shop", shop.workspace) == "2"
    shop.promote("2")
    assert target_operations.rollback_version("shop", shop.workspace) == "3"


def test_what_runs_and_nobody_knows_is_stopped(shop: Machine) -> None:
    shop.promote("1")
    shop.world.running["9"] = shop.world.running["1"]
    shop.world.routes = {}
    shop.world.was_served = False
    shop.reconcile()
    assert set(shop.world.running) == {"1"}
    assert shop.serves() == "1"


def _refuse(entries: object) -> None:
    from weighbridge.core.errors import Unavailable

    raise Unavailable("writing the ledger", "MLflow does not answer")


def _until(holds: object) -> None:
    deadline = monotonic() + 10
    while not holds():  # type: ignore[operator]
        assert monotonic() < deadline
        sleep(0.002)


def test_no_caller_skips_the_canary_by_calling_itself_a_rollback(shop: Machine) -> None:
    shop.promote("1")
    shop.registry.alias = "2"
    reconcile(shop.binding, shop.registry, shop.workspace, "rollback")  # type: ignore[arg-type]
    assert shop.serves() == "2"
    triggers = [entry.fields["trigger"] for entry in shop.registry.ledger if entry.event == "begin"]
    assert triggers == ["test", "reconcile"]


def test_what_was_gone_back_to_skips_the_canary_whoever_asks_but_not_for_ever(
    shop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.promote("1")
    records = shop.managed.records
    operator_commands.note_move(records, "2", "rollback")
    assert operator_commands.read(records).move_to("2") == "rollback"
    assert operator_commands.read(records).move_to("1") is None
    with monkeypatch.context() as patch:
        patch.setattr(operator_commands, "MOVE_SECONDS", 0.0)
        assert operator_commands.read(records).move_to("2") is None
    shop.promote("2")
    triggers = [entry.fields["trigger"] for entry in shop.registry.ledger if entry.event == "begin"]
    assert triggers == ["test", "rollback"]
    assert first_step(shop) == "at 100 % of the traffic"
    assert operator_commands.read(records).move_to("2") is None


def test_what_a_command_promoted_is_told_as_that_whoever_comes_first(shop: Machine) -> None:
    shop.promote("1")
    operator_commands.note_move(shop.managed.records, "2", "promote")
    shop.registry.alias = "2"
    reconcile(shop.binding, shop.registry, shop.workspace, "webhook")  # type: ignore[arg-type]
    assert shop.serves() == "2"
    triggers = [entry.fields["trigger"] for entry in shop.registry.ledger if entry.event == "begin"]
    assert triggers == ["test", "promote"]
    assert first_step(shop) == "at 10 % of the traffic", "only what was gone back to skips steps"
    assert operator_commands.read(shop.managed.records).move_to("2") is None


def test_what_supersedes_a_promoted_version_is_not_told_as_promoted(
    shop: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.rollout.reconcile.ALIAS_POLL", 0.01)
    shop.promote("1")
    operator_commands.note_move(shop.managed.records, "2", "promote")
    shop.registry.alias, shop.policy["step_seconds"] = "2", 30
    given = (shop.binding, shop.registry, shop.workspace, "webhook")
    worker = Thread(target=reconcile, args=given)
    worker.start()
    _until(lambda: shop.state.rollout is not None and shop.state.rollout.share == 10)
    shop.registry.alias, shop.policy["step_seconds"] = "3", 0
    worker.join(20)
    assert shop.serves() == "3"
    triggers = [entry.fields["trigger"] for entry in shop.registry.ledger if entry.event == "begin"]
    assert triggers == ["test", "promote", "webhook"]


def steps_passed(shop: Machine) -> list[str]:
    """What each step has shown, as the ledger tells it."""
    told = [entry.fields.get("shown", "") for entry in shop.registry.ledger]
    return [shown for shown in told if shown]


def first_step(shop: Machine) -> str:
    return steps_passed(shop)[0].partition(":")[0]


def test_a_step_passes_when_harm_is_excluded_and_the_ledger_says_so(shop: Machine) -> None:
    shop.promote("1")
    assert shop.promote("2").action == "deployed"
    assert [shown.partition(" after ")[0] for shown in steps_passed(shop)] == [
        "at 10 % of the traffic: 20 points of extra errors are excluded",
        "at 50 % of the traffic: 4 points of extra errors and 1.5 times the latency are excluded",
        "at 100 % of the traffic: 2 points of extra errors are excluded",
    ]


def test_a_version_that_fails_a_little_more_often_does_not_come_to_serve(shop: Machine) -> None:
    shop.world.versions["2"] = Version(error_share=0.05)
    shop.promote("1")
    assert shop.promote("2").action == "failed"
    assert shop.serves() == "1"


def test_where_nobody_asks_the_questions_decide_and_the_ledger_says_so(shop: Machine) -> None:
    shop.world.busy = False
    shop.promote("1")
    assert shop.promote("2").action == "deployed"
    assert all("clients ask too little" in shown for shown in steps_passed(shop))
    shop.policy |= {"exclude_harm": "always", "step_deadline": 0.05}
    assert shop.promote("3").action == "failed"
