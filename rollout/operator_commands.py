"""What a person tells a rollout: pause, resume, go on at once, abort. Kept beside the target."""

from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from weighbridge.core.disk import recording
from weighbridge.core.files import replace_text

Command = Literal["pause", "resume", "now", "abort"]

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


def read(folder: Path) -> OperatorCommands:
    """Return the commands in force; `folder` is the target's."""
    try:
        return OperatorCommands.model_validate_json((folder / _FILE).read_bytes())
    except FileNotFoundError:
        return OperatorCommands()


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
        folder.mkdir(parents=True, exist_ok=True)
        _issue(folder, changes[command])


def _issue(folder: Path, changes: dict[str, object]) -> None:
    # Two people may give commands at once: neither must undo the other's.
    with FileLock(folder / _LOCK):
        in_force = read(folder).model_copy(update=changes)
        replace_text(folder / _FILE, in_force.model_dump_json())
