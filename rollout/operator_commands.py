"""What a person tells a rollout: pause, resume, go on at once, abort, go back. Kept beside the
target.
"""

import time
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from weighbridge.core.disk import recording
from weighbridge.core.files import replace_text

Command = Literal["pause", "resume", "now", "abort"]

ROLLBACK_SECONDS = 600.0
"""A rollback that could not begin within that time is a promotion like any other."""
_FILE = "orders.json"
"""Its older name: a command given before an update is still obeyed after it."""
_LOCK = "orders.lock"


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


def read(folder: Path) -> OperatorCommands:
    """Return the commands in force; `folder` is the target's."""
    try:
        return OperatorCommands.model_validate_json((folder / _FILE).read_bytes())
    except FileNotFoundError:
        return OperatorCommands()


def note_rollback(folder: Path, version: str) -> None:
    """Note that this version is gone back to; empty: that no version is, any more."""
    _change(folder, {"rollback_to": version, "rollback_at": time.time()})


def issue(folder: Path, command: Command, rollout: str) -> None:
    """Put a command in force. The same again changes nothing.

    `now` and `abort` are for one rollout alone, and end a pause: the rollout goes on, or back.

    Args:
        folder: the target's.
        command: what is wanted.
        rollout: id of the rollout under way; empty for none.

    Raises:
        Unavailable: the disk is full.
    """
    changes: dict[Command, dict[str, object]] = {
        "pause": {"paused": True},
        "resume": {"paused": False},
        "now": {"paused": False, "now": rollout},
        "abort": {"paused": False, "abort": rollout},
    }
    with recording(folder / _FILE):
        _change(folder, changes[command])


def _change(folder: Path, changes: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Two people may give commands at once: neither must undo the other's.
    with FileLock(folder / _LOCK):
        in_force = read(folder).model_copy(update=changes)
        replace_text(folder / _FILE, in_force.model_dump_json())
