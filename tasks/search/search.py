"""search: a space, somebody who measures, a budget -> the best setting, and why not the others."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from weighbridge.core.errors import Unavailable
from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.space import Setting, Space, key_of
from weighbridge.tasks.search.strategy import TIE, Standing, Strategy
from weighbridge.tasks.search.visits import Measure, Question, Visit

logger = logging.getLogger(__name__)

TOLD: Final = 2.0
"""Standard deviations by which two settings must differ to be told apart."""
LIKELY_FAILS: Final = 0.5
"""Likelihood of failing from which on a setting is not weighed while there is another."""
MORE: Final = "is within the noise of these runs; give more seconds or trials"


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
    """Whether no other finalist can be told from the winner."""
    why: str
    """One sentence."""

    @property
    def setting(self) -> Setting:
        return self.space.settings[self.winner]

    def best_of(self, numbers: Sequence[int]) -> int:
        """Return the winner where it is one of some settings, else the best of them by the lower
        bound, visited or not: of those that are not likely to fail.
        """
        if self.winner in numbers:
            return self.winner
        bounds = self.standing.posterior.mean - self.standing.deviation
        failing = self.standing.failing
        usable = [number for number in numbers if failing[number] < LIKELY_FAILS]
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
    # Of a search that goes on as well: the same budget is refused each time.
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
    others = [number for number in finalists if number != winner]
    within = bool(others) and all(_cannot_be_told(standing, winner, one) for one in others)
    return Found(
        strategy.space,
        winner,
        finalists,
        visits,
        standing,
        within,
        _why(strategy.space, standing, finalists, winner, within),
    )


def _cannot_be_told(standing: Standing, winner: int, other: int) -> bool:
    """Whether one is not faster than the other beyond what the noise makes of them."""
    gain = standing.posterior.mean[winner] - standing.posterior.mean[other]
    doubt = TOLD * np.hypot(standing.deviation[winner], standing.deviation[other])
    return bool(gain < doubt)


def _why(
    space: Space, standing: Standing, finalists: Sequence[int], winner: int, within: bool
) -> str:
    tried = len({*standing.visited.tolist(), *standing.failed})
    told = f"of {len(space.settings)} settings {tried} were tried, {len(standing.failed)} failed"
    speed = np.exp(standing.posterior.mean[winner])
    sigma = standing.deviation[winner]
    default = next((number for number in finalists if number in space.defaults), None)
    return (
        f"{told}; the best has {speed:.4g} (a standard deviation of {100 * sigma:.0f} %)"
        + ("" if default is None else _against(standing, winner, default, within))
        + (f": every finalist {MORE}" if within else "")
    )


def _against(standing: Standing, winner: int, default: int, within: bool) -> str:
    if winner == default:
        return ", with the engine's defaults"
    gain = np.exp(standing.posterior.mean[winner] - standing.posterior.mean[default]) - 1
    doubt = not within and _cannot_be_told(standing, winner, default)
    return f", {100 * gain:+.0f} % against the defaults" + (f", which {MORE}" if doubt else "")


def reasons(found: Found) -> dict[str, str]:
    """Return why each setting that was tried has not won, by its JSON, the nearest first."""
    mean = found.standing.posterior.mean
    tried = sorted(set(found.standing.visited.tolist()), key=lambda number: -mean[number])
    said = {key_of(found.space.settings[number]): _behind(found, number) for number in tried}
    # After the speeds: one that works at times loses for the other times.
    for visit in found.visits:
        if visit.failure is not None:
            said[key_of(visit.setting)] = f"{visit.failure.phase}: {visit.failure.why}"
    said.pop(key_of(found.setting), None)
    return said


def _behind(found: Found, number: int) -> str:
    standing, winner = found.standing, found.winner
    behind = 1 - np.exp(standing.posterior.mean[number] - standing.posterior.mean[winner])
    told = f"{abs(100 * behind):.0f} % {'behind' if behind >= 0 else 'ahead of'} the winner"
    told += f", give or take {100 * standing.deviation[number]:.0f} %"
    bounds = standing.lower()
    if bounds[number] >= bounds.max() - TIE:
        return f"{told}: as good within {TIE:.0%}, with no fewer changes to the defaults"
    return told if behind >= 0 else f"{told}: its lower bound is behind"
