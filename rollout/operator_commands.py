"""What a person tells a rollout: pause, resume, go on at once, abort; and which version a command
has made champion. Kept with the target's records.
"""

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from weighbridge.serving.targets.records import COMMANDS, TargetRecords

Command = Literal["pause", "resume", "now", "abort"]
Move = Literal["promote", "rollback"]
"""The commands that move the alias."""

MOVE_SECONDS = 600.0
"""A rollout that could not begin within that time is one like any other: it has a canary."""


class OperatorCommands(BaseModel):
    """Commands in force at one target."""

    model_config = ConfigDict(frozen=True)

    paused: bool = False
    """No step is taken and no rollout begins."""
    now: str = ""
    """Id of the rollout that skips the steps it has left; empty for none."""
    abort: str = ""
    """Id of the rollout that is rolled back; empty for none."""
    moved_to: str = ""
    """Version that a command has made champion; empty for none."""
    moved_by: Move = "promote"
    moved_at: float = 0.0
    """Unix time at which that was asked for."""

    @model_validator(mode="before")
    @classmethod
    def _with_earlier_names(cls, document: Any) -> Any:
        """Read a rollback as earlier releases noted it."""
        if not isinstance(document, dict) or "rollback_to" not in document:
            return document
        to, at = document["rollback_to"], document.get("rollback_at", 0.0)
        return {"moved_to": to, "moved_by": "rollback", "moved_at": at} | document

    def move_to(self, version: str) -> Move | None:
        """Return the command that made this version champion not long ago, None where none did."""
        is_recent = time.time() - self.moved_at < MOVE_SECONDS
        return self.moved_by if version and version == self.moved_to and is_recent else None


def read(records: TargetRecords) -> OperatorCommands:
    """Return the commands in force, of the target whose records these are."""
    return _parse(records.read(COMMANDS).content)


def glance(records: TargetRecords) -> OperatorCommands:
    """Return the commands in force a moment ago, for whoever looks many times a second."""
    return _parse(records.glance(COMMANDS))


def note_move(records: TargetRecords, version: str, by: Move) -> None:
    """Note that a command is about to make this version champion.

    What `rollback` has moved to serves without a canary.
    """
    _change(records, {"moved_to": version, "moved_by": by, "moved_at": time.time()})


def forget_move(records: TargetRecords, version: str) -> None:
    """Forget that a command made this version champion, if that is what is noted."""

    def changed(content: bytes) -> bytes:
        commands = _parse(content)
        # Another move may have been noted since the look below.
        if commands.moved_to != version:
            return content
        return commands.model_copy(update={"moved_to": ""}).model_dump_json().encode()

    if read(records).moved_to == version:
        records.change(COMMANDS, changed)


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
