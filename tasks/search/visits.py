"""What a search has tried: one engine start after another, each with what it showed.

A recorded grid is a file of the same lines, so that a search can be replayed on it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weighbridge.core.errors import BadInput
from weighbridge.core.files import replace_text
from weighbridge.tasks.search.aim import Figure
from weighbridge.tasks.search.space import Setting

Phase = Literal["check", "start", "load", "weigh"]
FAILED_AT: Final = ("start: ", "load: ", "weigh: ")
"""How the reason of a setting begins that was tried and failed."""


class Failure(BaseModel):
    """Why a setting could not be measured."""

    model_config = ConfigDict(frozen=True)

    phase: Phase = Field(
        description="When it broke: before a start, at it, under load, or somewhere in a weighing."
    )
    why: str = Field(description="With the end of the engine's log.")
    memory: int | None = Field(
        None,
        description="Fewest bytes that the machine had left meanwhile; before a start: all that it "
        "has.",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="All arguments of the engine."
    )


class Visit(BaseModel):
    """One start of an engine under one setting, and what it showed."""

    model_config = ConfigDict(frozen=True)

    setting: dict[str, Any]
    start_seconds: float = Field(description="Until the first real token, or until it broke.")
    run_seconds: float = Field(0.0, description="Of all runs together.")
    repeats: list[list[float]] = Field(
        default_factory=list, description="Speeds by load level; one list per round of runs."
    )
    levels: list[int] = Field(
        default_factory=list,
        description="Requests under way together at each load level; none: the lowest and the "
        "highest of the weighing.",
    )
    figure: Figure = Field("tokens/s", description="What `repeats` holds, so that more is better.")
    failure: Failure | None = None

    @property
    def seconds(self) -> float:
        return self.start_seconds + self.run_seconds

    def log_speeds(self) -> list[float]:
        """Return the mean log of the speeds over the load levels, of each round: ratios count, not
        the larger figures of the higher levels.
        """
        return [sum(map(math.log, levels)) / len(levels) for levels in self.repeats]


@dataclass(frozen=True)
class Question:
    """What is to be measured next."""

    setting: Setting
    rounds: int
    """Rounds of short runs, each at every load level, on one start of the engine."""
    number: int
    """How many visits came before; prompts and a replay's noise go by it."""


class Measure(Protocol):
    """Start an engine, or look it up, and return what it showed; never raise for a setting that
    does not work.
    """

    def __call__(self, question: Question) -> Visit: ...


class GridPoint(Visit):
    """One line of a recorded grid: the visits to one setting, or what a model says of it."""

    noise: float | None = Field(
        None,
        description="Standard deviation of the log of one round; only where `repeats` are filled "
        "in by a model.",
    )
    recorded: list[list[float]] = Field(
        default_factory=list,
        description="Rounds that were really run, where `repeats` are a model's.",
    )

    @property
    def filled(self) -> bool:
        return self.noise is not None


def read_grid(path: Path) -> list[GridPoint]:
    """Return the points of a recorded grid.

    Raises:
        BadInput: there is no such file, or a line of it is no point.
    """
    doing = f"reading the recorded grid {path}"
    try:
        # Not `splitlines`: it cuts at U+2028 too, which a failure may hold.
        with path.open(encoding="utf-8") as stream:
            lines = list(stream)
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(doing, str(exc), "give a file that a weighing has left") from exc
    points = []
    for number, line in enumerate(lines, start=1):
        try:
            points.append(GridPoint.model_validate_json(line))
        except ValidationError as exc:
            wrong = f"line {number}: {exc.errors()[0]['msg']}"
            raise BadInput(doing, wrong, "correct or remove the line") from exc
    if not points:
        raise BadInput(doing, "it has no line", "give a file that a weighing has left")
    return points


def write_grid(path: Path, points: Iterable[Visit]) -> None:
    """Write points, one JSON object a line."""
    replace_text(path, "".join(f"{_line(point)}\n" for point in points))


def _line(point: Visit) -> str:
    return point.model_dump_json(exclude_defaults=True)


def grid_of(visits: Sequence[Visit]) -> list[GridPoint]:
    """Return visits as a grid: one point per setting, with all rounds that were run."""
    by_setting: dict[str, list[Visit]] = {}
    for visit in visits:
        by_setting.setdefault(repr(sorted(visit.setting.items())), []).append(visit)
    return [_point(group) for group in by_setting.values()]


def _point(visits: Sequence[Visit]) -> GridPoint:
    """Return the mean start and run of one round, and every round."""
    worked = [visit for visit in visits if visit.failure is None] or visits[-1:]
    rounds = [levels for visit in worked for levels in visit.repeats]
    return GridPoint(
        setting=worked[0].setting,
        start_seconds=sum(visit.start_seconds for visit in worked) / len(worked),
        run_seconds=sum(visit.run_seconds for visit in worked) / max(1, len(rounds)),
        repeats=rounds,
        levels=worked[0].levels,
        figure=worked[0].figure,
        failure=worked[0].failure,
    )
