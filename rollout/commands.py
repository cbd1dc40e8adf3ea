"""What a person tells a rollout: pause, resume, go on at once, abort. Kept beside the target."""

from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from weighbridge.core.files import replace_text

Command = Literal["pause", "resume", "now", "abort"]


class OperatorCommands(BaseModel):
    """Orders in force at one target."""

    model_config = ConfigDict(frozen=True)

    paused: bool = False
    """No step is taken and no rollout begins."""
    now: str = ""
    """Rollout that skips the steps it has left."""
    abort: str = ""
    """Rollout that is taken back."""


def read(folder: Path) -> OperatorCommands:
    """The orders in force; `folder` is the target's."""
    try:
        return OperatorCommands.model_validate_json((folder / "orders.json").read_bytes())
    except FileNotFoundError:
        return OperatorCommands()


def issue(folder: Path, verb: Command, rollout: str) -> None:
    """Put a verb in force; `rollout` is the one under way, empty for none. The same again changes
    nothing.

    `now` and `abort` are for that one rollout alone, and end a pause: it goes on, or back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "orders.lock"):
        change: dict[str, dict[str, object]] = {
            "pause": {"paused": True},
            "resume": {"paused": False},
            "now": {"paused": False, "now": rollout},
            "abort": {"paused": False, "abort": rollout},
        }
        orders = read(folder).model_copy(update=change[verb])
        replace_text(folder / "orders.json", orders.model_dump_json())
