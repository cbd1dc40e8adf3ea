"""What a person tells a rollout: pause, resume, go on at once, abort, go back. Kept with the
target's records.
"""

import time
from typing import Literal

from pydantic import BaseModel, ConfigDict

from weighbridge.serving.targets.records import COMMANDS, TargetRecords

Command = Literal["pause", "resume", "now", "abort"]

ROLLBACK_SECONDS = 600.0
"""A rollback that could not begin within that time is a promotion like any other."""


class OperatorCommands(BaseModel):
    """Commands in force at one target."""

    model_config = ConfigDict(frozen=True)

    paused: bool = False
    """No step is taken and no rollout begins."""
    now: str = ""
    """Id of the rollout that skips the steps it has left; empty for none."""
    abort: str = ""
    """Id of the rollout that is rolled back; empty for none."""
    rollback_to: str = ""
    """Version that somebody went back to: it serves without a canary; empty for none."""
    rollback_at: float = 0.0
    """Unix time at which that was asked for."""

    def goes_back_to(self, version: str) -> bool:
        """Whether this version is what somebody went back to, not long ago."""
        is_recent = time.time() - self.rollback_at < ROLLBACK_SECONDS
        return bool(version) and version == self.rollback_to and is_recent


def read(records: TargetRecords) -> OperatorCommands:
    """Return the commands in force, of the target whose records these are."""
    return _parse(records.read(COMMANDS).content)


def glance(records: TargetRecords) -> OperatorCommands:
    """Return the commands in force a moment ago, for whoever looks many times a second."""
    return _parse(records.glance(COMMANDS))


def note_rollback(records: TargetRecords, version: str) -> None:
    """Note that this version is gone back to; empty: that no version is, any more."""
    _change(records, {"rollback_to": version, "rollback_at": time.time()})


def issue(records: TargetRecords, command: Command, rollout: str) -> None:
    """Put a command in force. The same again changes nothing.

    `now` and `abort` are for one rollout alone, and end a pause: the rollout goes on, or back.

    Args:
        records: the target's.
        command: what is wanted.
        rollout: id of the rollout under way; empty for none.

    Raises:
        Unavailable: it can't be written down, as where the disk is full.
    """
    changes: dict[Command, dict[str, object]] = {
        "pause": {"paused": True},
        "resume": {"paused": False},
        "now": {"paused": False, "now": rollout},
        "abort": {"paused": False, "abort": rollout},
    }
    _change(records, changes[command])


def _change(records: TargetRecords, changes: dict[str, object]) -> None:
    def changed(content: bytes) -> bytes:
        return _parse(content).model_copy(update=changes).model_dump_json().encode()

    records.change(COMMANDS, changed)


def _parse(content: bytes) -> OperatorCommands:
    return OperatorCommands.model_validate_json(content) if content else OperatorCommands()
