"""What people tell a rollout: each command's effect, how long it holds, and that none is lost."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from weighbridge.rollout import operator_commands
from weighbridge.rollout.operator_commands import Command, OperatorCommands
from weighbridge.serving.targets.home_records import HomeRecords
from weighbridge.serving.targets.records import TargetRecords


def test_without_commands_nothing_is_in_force(tmp_path: Path) -> None:
    assert operator_commands.read(HomeRecords(tmp_path / "shop")) == OperatorCommands()


@pytest.mark.parametrize(
    ("command", "before", "after"),
    [
        ("pause", OperatorCommands(), OperatorCommands(paused=True)),
        ("resume", OperatorCommands(paused=True), OperatorCommands()),
        ("now", OperatorCommands(paused=True), OperatorCommands(now="7")),
        ("abort", OperatorCommands(paused=True), OperatorCommands(abort="7")),
        ("abort", OperatorCommands(now="7"), OperatorCommands(now="7", abort="7")),
    ],
)
def test_a_command_given_twice_is_a_command_given_once(
    tmp_path: Path, command: Command, before: OperatorCommands, after: OperatorCommands
) -> None:
    (tmp_path / "orders.json").write_text(before.model_dump_json())
    for _ in range(2):
        operator_commands.issue(HomeRecords(tmp_path), command, "7")
        assert operator_commands.read(HomeRecords(tmp_path)) == after


def test_now_and_abort_are_for_one_rollout_alone(tmp_path: Path) -> None:
    operator_commands.issue(HomeRecords(tmp_path), "abort", "7")
    operator_commands.issue(HomeRecords(tmp_path), "now", "8")
    assert operator_commands.read(HomeRecords(tmp_path)) == OperatorCommands(now="8", abort="7")


def test_commands_given_at_once_are_all_in_force(tmp_path: Path) -> None:
    for _ in range(20):
        operator_commands.issue(HomeRecords(tmp_path), "resume", "")
        with ThreadPoolExecutor(3) as pool:
            list(
                pool.map(
                    lambda command: operator_commands.issue(HomeRecords(tmp_path), command, "7"),
                    ("pause", "now", "abort"),
                )
            )
        in_force = operator_commands.read(HomeRecords(tmp_path))
        assert (in_force.now, in_force.abort) == ("7", "7")
        (tmp_path / "orders.json").unlink()


def test_a_rollback_that_an_earlier_release_has_noted_is_read(tmp_path: Path) -> None:
    noted = {"paused": True, "rollback_to": "6", "rollback_at": time.time()}
    (tmp_path / "orders.json").write_text(json.dumps(noted))
    in_force = operator_commands.read(HomeRecords(tmp_path))
    assert (in_force.paused, in_force.move_to("6")) == (True, "rollback")
    operator_commands.note_move(HomeRecords(tmp_path), "7", "promote")
    assert operator_commands.read(HomeRecords(tmp_path)).move_to("7") == "promote"


def test_what_is_noted_while_another_move_is_forgotten_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = HomeRecords(tmp_path)
    operator_commands.note_move(records, "7", "promote")
    read = operator_commands.read

    def rolled_back_after_it(looked_at: TargetRecords) -> OperatorCommands:
        seen = read(looked_at)
        operator_commands.note_move(records, "6", "rollback")
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(operator_commands, "read", rolled_back_after_it)
        operator_commands.forget_move(records, "7")
    assert operator_commands.read(records).move_to("6") == "rollback"
    operator_commands.forget_move(records, "6")
    assert operator_commands.read(records).move_to("6") is None
