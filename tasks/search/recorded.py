"""A record in place of an engine, as a recipe names it: `{kind: replay, grid: PATH}`.

The search runs as it always does and pays the recorded seconds of starts, runs and failures, but
nothing is started. Afterwards it can be said how near it came to the best of the record.
"""

import math
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from weighbridge.core.errors import BadInput
from weighbridge.serving.engines.base import EngineArgs, engine_for
from weighbridge.serving.engines.replay import ReplayArgs
from weighbridge.tasks.search.space import CANDIDATE, Branch, Setting, key_of
from weighbridge.tasks.search.visits import Question, Visit, read_grid

if TYPE_CHECKING:
    from weighbridge.tasks.search.replay import Replay

RECORDED: Final = "recorded"
"""Under which option a setting says which of the record's candidates it is."""


def branch(label: str, engine: EngineArgs) -> Branch:
    """Return every setting of a record that has the values which the recipe gives with the engine.

    Raises:
        BadInput: none has.
    """
    replay, given = _replay_of(engine), _given(engine)
    listed = [_as_option(point.setting) for point in replay.points.values()]
    kept = [one for one in listed if all(_has(one, name, given[name]) for name in given)]
    if not kept:
        raise BadInput(
            f"replaying {engine_for(engine).record()}",
            f"none of its {len(listed)} settings has {key_of(given)}",
            "leave these options out",
        )
    return Branch(label, {}, kept)


def answer(engine: EngineArgs, question: Question) -> Visit:
    """Return what the record has of a setting, after `pace` of its seconds."""
    assert isinstance(engine, ReplayArgs)
    asked = Question(_as_recorded(question.setting), question.rounds, question.number)
    visit = _replay_of(engine)(asked)
    time.sleep(engine.pace * visit.seconds)
    return visit.model_copy(update={"setting": dict(question.setting)})


def comparison(engine: EngineArgs, setting: Setting, spent: float) -> str:
    """Return how near a search came to the best of a record, and at which part of its seconds."""
    replay = _replay_of(engine)
    best = max(replay.truth(point.setting) for point in replay.points.values())
    share = math.exp(replay.truth(_as_recorded(setting)) - best)
    return (
        f"{share:.0%} of the best speed of the record, at {spent / replay.seconds():.0%} of the "
        f"{replay.seconds():,.0f} s that one round of all its settings takes"
    )


def _replay_of(engine: EngineArgs) -> "Replay":
    assert isinstance(engine, ReplayArgs)
    return _read(Path(engine.grid), engine.seed)


@lru_cache(maxsize=1)
def _read(grid: Path, seed: int) -> "Replay":
    # Every stage imports this module, and replaying brings numpy.
    from weighbridge.tasks.search.replay import Replay

    return Replay(read_grid(grid), seed)


def _given(engine: EngineArgs) -> Setting:
    return engine.model_extra or {}


def _has(setting: Setting, name: str, value: object) -> bool:
    return name in setting and key_of(setting[name]) == key_of(value)


def _as_option(setting: Setting) -> Setting:
    """Return a setting of a record with its candidate as an option: the search has its own."""
    return {RECORDED if name == CANDIDATE else name: value for name, value in setting.items()}


def _as_recorded(setting: Setting) -> Setting:
    return {
        CANDIDATE if name == RECORDED else name: value
        for name, value in setting.items()
        if name != CANDIDATE
    }
