"""What people tell a rollout: each command's effect, how long it holds, and that none is lost."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from weighbridge.rollout import operator_commands
from weighbridge.rollout.operator_commands import Command, OperatorCommands
from weighbridge.serving.targets.home_records import HomeRecords


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
