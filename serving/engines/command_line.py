"""What the command lines and tunings of engines have in common."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel

# By its path, since it runs isolated: it imports nothing of ours.
REAPER: Final = Path(__file__).resolve().parents[1] / "reaper.py"

ModelT = TypeVar("ModelT", bound=BaseModel)


def flags(options: Mapping[str, object], *, dashed: bool = True) -> list[str]:
    """Return options as words of a command line.

    Args:
        options: Values by name. None and False are left out, True is a switch without a value.
        dashed: Whether names are written with dashes instead of underscores.
    """
    arguments: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-') if dashed else name}"
        if value is True:
            arguments.append(flag)
        # By identity: 0 is a value that an option may have.
        elif value is not None and value is not False:
            arguments += [flag, str(value)]
    return arguments


def guarded(command: Sequence[str], python: Path) -> list[str]:
    """Return the same command for a server of several processes: all of them end with its first
    one, however that ends.
    """
    return [str(python), "-I", str(REAPER), "--reap-group", "--", *command]


def variations(args: ModelT, **choices: Iterable[object]) -> list[ModelT]:
    """Return the arguments with every combination of these values, for `Engine.tunings`.

    Args:
        args: Arguments as a recipe gave them.
        choices: Values worth trying, by the name of the option. An option that was given keeps its
            value.
    """
    left_open = {name: values for name, values in choices.items() if getattr(args, name) is None}
    return [
        args.model_copy(update=dict(zip(left_open, combination, strict=True)))
        for combination in itertools.product(*left_open.values())
    ]
