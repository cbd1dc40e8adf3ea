"""search: a space, somebody who measures, a budget -> the best setting, and why not the others."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from weighbridge.core.errors import Unavailable
from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.space import Setting, Space, key_of
from weighbridge.tasks.search.strategy import Standing, Strategy
from weighbridge.tasks.search.visits import Measure, Question, Visit

logger = logging.getLogger(__name__)

TOLD: Final = 2.0
"""Standard deviations by which two settings must differ to be told apart."""
WITHIN_NOISE: Final = ": all finalists are within the noise of these runs; give more seconds"


@dataclass(frozen=True)
class Found:
    """What a search has come to."""

    space: Space
    winner: int
    """Number of the setting."""
    finalists: list[int]
    """The best few and the best of the engine's defaults, best lower bound first."""
    visits: list[Visit]
    standing: Standing
    within_noise: bool
    """Whether no finalist can be told from the defaults."""
    why: str
    """One sentence."""

    @property
    def setting(self) -> Setting:
        return self.space.settings[self.winner]

    def best_of(self, numbers: Sequence[int]) -> int:
        """Return the best of some settings, visited or not, by the lower bound."""
        bounds = self.standing.posterior.mean - self.standing.deviation
        usable = [number for number in numbers if number not in self.standing.failed]
        return max(usable or list(numbers), key=lambda number: bounds[number])

    def reasons(self) -> dict[str, str]:
        """Return why each setting that was tried has not won."""
        return reasons(self)


def search(
    space: Space,
    measure: Measure,
    budget: Budget,
    *,
    seed: int = 0,
    storage: Path | None = None,
    name: str = "search",
) -> Found:
    """Return the best setting of the space.

    With `storage`, every visit is on the disk when the next one begins, and a search of the same
    name goes on there.

    Raises:
        BadInput: the budget is smaller than one start.
        Unavailable: nothing that was tried works.
    """
    import optuna
    from optuna.storages import BaseStorage, InMemoryStorage

    from weighbridge.tasks.search.journal import journal
    from weighbridge.tasks.search.sampler import StrategySampler, ask, tell, visits_of

    strategy = Strategy(space, seed)
    # It prints a line for each trial otherwise.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    in_memory: AbstractContextManager[BaseStorage] = nullcontext(InMemoryStorage())
    with journal(storage) if storage else in_memory as kept:
        study = optuna.create_study(
            storage=kept,
            sampler=StrategySampler(strategy, budget),
            study_name=name,
            direction="maximize",
            load_if_exists=True,
        )
        visits = visits_of(study)
        while not visits or budget.allows(visits):
            trial, setting = ask(study, space)
            visit = measure(Question(setting, rounds=1, number=len(visits)))
            tell(study, trial, visit)
            visits.append(visit)
            logger.info("%s: %s", key_of(setting), _shown(visit))
            budget.require_one_start(visits)
    return _found(strategy, visits)


def _shown(visit: Visit) -> str:
    if visit.failure is not None:
        return f"{visit.failure.phase} failed: {visit.failure.why.splitlines()[0]}"
    return f"{np.exp(np.mean(visit.log_speeds())):.4g} in {visit.seconds:.1f} s"


def _found(strategy: Strategy, visits: list[Visit]) -> Found:
    standing = strategy.standing(visits)
    if not len(standing.visited):
        failure = next(visit.failure for visit in visits if visit.failure is not None)
        raise Unavailable(
            "searching", f"none of {len(visits)} settings works; the first: {failure.why}"
        )
    finalists = strategy.finalists(standing)
    winner = strategy.winner(standing)
    default = next((number for number in finalists if number in strategy.space.defaults), None)
    within = default is not None and _cannot_be_told(standing, winner, default)
    return Found(
        strategy.space,
        winner,
        finalists,
        visits,
        standing,
        within,
        _why(strategy.space, standing, winner, default, within),
    )


def _cannot_be_told(standing: Standing, winner: int, default: int) -> bool:
    """Whether the best is not faster than the defaults beyond what the noise makes of them."""
    gain = standing.posterior.mean[winner] - standing.posterior.mean[default]
    doubt = TOLD * np.hypot(standing.deviation[winner], standing.deviation[default])
    return winner == default or bool(gain < doubt)


def _why(space: Space, standing: Standing, winner: int, default: int | None, within: bool) -> str:
    tried = len(set(standing.visited.tolist()))
    told = f"of {len(space.settings)} settings {tried} were tried, {len(standing.failed)} failed"
    speed = np.exp(standing.posterior.mean[winner])
    sigma = standing.deviation[winner]
    return (
        f"{told}; the best has {speed:.4g} (a standard deviation of {100 * sigma:.0f} %)"
        + ("" if default is None else _against(standing, winner, default))
        + (
            ": all finalists are within the noise of these runs; give more seconds"
            if within
            else ""
        )
    )


def _against(standing: Standing, winner: int, default: int) -> str:
    gain = np.exp(standing.posterior.mean[winner] - standing.posterior.mean[default]) - 1
    return f", {100 * gain:+.0f} % against the defaults"


def reasons(found: Found) -> dict[str, str]:
    """Return why each setting that was tried has not won, by its JSON."""
    said: dict[str, str] = {}
    best = found.standing.posterior.mean[found.winner]
    failures: Mapping[str, str] = {
        key_of(visit.setting): f"{visit.failure.phase}: {visit.failure.why}"
        for visit in found.visits
        if visit.failure is not None
    }
    said.update(failures)
    for number in dict.fromkeys(found.standing.visited.tolist()):
        if number != found.winner:
            behind = 1 - np.exp(found.standing.posterior.mean[number] - best)
            doubt = found.standing.deviation[number]
            said[key_of(found.space.settings[number])] = (
                f"{100 * behind:.0f} % behind the best, give or take {100 * doubt:.0f} %"
            )
    return said
