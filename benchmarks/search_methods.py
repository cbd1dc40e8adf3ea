"""The searches that `benchmarks.search` holds ours against: random, halving, TPE, a hill climb.

Each asks the same replay under the same budget, repeats nothing unless its method says so, and
takes the largest value that it has seen.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
import optuna
from optuna.trial import TrialState

from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.sampler import distributions, plain
from weighbridge.tasks.search.search import search
from weighbridge.tasks.search.space import Setting, Space, key_of
from weighbridge.tasks.search.visits import Measure, Question, Visit

Method = Callable[[Space, Measure, Budget, int], Setting]


class Notes:
    """What one search has asked so far."""

    def __init__(self, measure: Measure, budget: Budget) -> None:
        self._measure = measure
        self.budget = budget
        self.visits: list[Visit] = []

    def goes_on(self) -> bool:
        return not self.visits or self.budget.allows(self.visits)

    def ask(self, setting: Setting, rounds: int = 1) -> float | None:
        """Return the log speed of a setting, None where it does not work."""
        visit = self._measure(Question(setting, rounds, len(self.visits)))
        self.visits.append(visit)
        return None if visit.failure else float(np.mean(visit.log_speeds()))

    def largest(self) -> Setting:
        """Return the setting with the largest mean of what it has shown."""
        logs: dict[str, list[float]] = {}
        settings = {}
        for visit in self.visits:
            settings[key_of(visit.setting)] = visit.setting
            logs.setdefault(key_of(visit.setting), []).extend(visit.log_speeds())
        shown = {key: float(np.mean(values)) for key, values in logs.items() if values}
        return settings[max(shown, key=lambda key: shown[key])] if shown else {}


def ours(space: Space, measure: Measure, budget: Budget, seed: int) -> Setting:
    """Search as a weighing does."""
    return search(space, measure, budget, seed=seed).setting


def at_random(space: Space, measure: Measure, budget: Budget, seed: int) -> Setting:
    """Try settings in random order, each once."""
    notes = Notes(measure, budget)
    for setting in _shuffled(space.settings, seed):
        if not notes.goes_on():
            break
        notes.ask(setting)
    return notes.largest()


def halving(space: Space, measure: Measure, budget: Budget, seed: int) -> Setting:
    """Try many settings once, the better half of them twice as long, and so on."""
    notes = Notes(measure, budget)
    default = space.settings[space.defaults[0]]
    first = notes.ask(default)
    # As many as give each of about three halvings the same time.
    fitting = int((budget.seconds or 0) / notes.visits[0].seconds / 3)
    racing = _shuffled(space.settings, seed)[: max(2, fitting)]
    shown: dict[str, list[float]] = {key_of(default): [] if first is None else [first]}
    rounds = 1
    while len(racing) > 1 and notes.goes_on():
        for setting in racing:
            if notes.goes_on() and (value := notes.ask(setting, rounds)) is not None:
                shown.setdefault(key_of(setting), []).extend([value] * rounds)
        racing = [one for one in racing if shown.get(key_of(one))]
        racing.sort(key=lambda one: -float(np.mean(shown[key_of(one)])))
        racing = racing[: max(1, len(racing) // 2)]
        rounds *= 2
    return racing[0] if racing else notes.largest()


def tpe(space: Space, measure: Measure, budget: Budget, seed: int) -> Setting:
    """Ask Optuna's own sampler; it is told of failures, and of settings that the space lacks."""
    notes = Notes(measure, budget)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True), direction="maximize"
    )
    known = {_plain(setting): setting for setting in space.settings}
    options = distributions(space)
    while notes.goes_on():
        trial = study.ask(dict(options))
        setting = known.get(tuple(sorted((k, plain(v)) for k, v in trial.params.items())))
        value = None if setting is None else notes.ask(setting)
        if value is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)
    return notes.largest()


def hill_climb(space: Space, measure: Measure, budget: Budget, seed: int) -> Setting:
    """Start at the engine's defaults; go to the first neighbour that looks better, and from a top
    to a random place.
    """
    notes = Notes(measure, budget)
    generator = random.Random(seed)
    here, height = space.settings[space.defaults[0]], -np.inf
    while notes.goes_on():
        height = notes.ask(here) or -np.inf
        moved = True
        while moved:
            moved = False
            for neighbour in _shuffled(_neighbours(space, here), generator.random()):
                if not notes.goes_on():
                    return notes.largest()
                value = notes.ask(neighbour)
                if value is not None and value > height:
                    here, height, moved = neighbour, value, True
                    break
        here = generator.choice(space.settings)
    return notes.largest()


METHODS: dict[str, Method] = {
    "ours": ours,
    "random": at_random,
    "halving": halving,
    "tpe": tpe,
    "climb": hill_climb,
}


def _shuffled(settings: Sequence[Setting], seed: float) -> list[Setting]:
    mixed = list(settings)
    random.Random(seed).shuffle(mixed)
    return mixed


def _neighbours(space: Space, here: Setting) -> list[Setting]:
    """Return the settings that differ in one option."""
    return [
        other
        for other in space.settings
        if other.keys() == here.keys()
        and sum(key_of(other[name]) != key_of(here[name]) for name in here) == 1
    ]


def _plain(setting: Setting) -> tuple[tuple[str, object], ...]:
    return tuple(sorted((name, plain(value)) for name, value in setting.items()))
