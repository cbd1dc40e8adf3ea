"""The search's strategy as a sampler of Optuna's, so that any tool for Optuna studies reads its
trials.
"""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.space import Setting, Space, key_of
from weighbridge.tasks.search.strategy import Strategy
from weighbridge.tasks.search.visits import Visit

VISIT = "visit"
"""User attribute that holds what a trial showed."""


class StrategySampler(BaseSampler):
    """Proposes whole settings; failed trials are known to it."""

    def __init__(self, strategy: Strategy, budget: Budget) -> None:
        self._strategy = strategy
        self._budget = budget
        self._distributions = distributions(strategy.space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return every option of the space: they are proposed together."""
        return dict(self._distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the options of the next setting."""
        visits = visits_of(study)
        number = self._strategy.next(visits, self._budget.used(visits))
        return {name: plain(value) for name, value in self._strategy.space.settings[number].items()}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a random value of an option that this space does not have."""
        return RandomSampler(0).sample_independent(study, trial, param_name, param_distribution)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the values of every option as Optuna keeps them."""
    return {
        name: CategoricalDistribution([plain(value) for value in values])
        for name, values in space.choices().items()
    }


def plain(value: Any) -> bool | int | float | str | None:
    """Return a value as Optuna can keep it: what is made of several is its JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return key_of(value)


def visits_of(study: optuna.Study) -> list[Visit]:
    """Return what the study's finished trials showed, failed ones included.

    One that was under way when its process was killed has shown nothing.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [
        Visit.model_validate_json(trial.user_attrs[VISIT])
        for trial in finished
        if VISIT in trial.user_attrs
    ]


def ask(study: optuna.Study, space: Space) -> tuple[optuna.Trial, Setting]:
    """Return a new trial and its setting."""
    trial = study.ask()
    proposed = trial.relative_params
    values = {
        name: trial.suggest_categorical(name, distribution.choices)
        for name, distribution in distributions(space).items()
        if name in proposed and isinstance(distribution, CategoricalDistribution)
    }
    wanted = {name: plain(value) for name, value in values.items()}
    setting = next(
        setting
        for setting in space.settings
        if {name: plain(value) for name, value in setting.items()} == wanted
    )
    return trial, setting


def tell(study: optuna.Study, trial: optuna.Trial, visit: Visit) -> None:
    """Note what a trial showed; one that failed has no value."""
    trial.set_user_attr(VISIT, visit.model_dump_json(exclude_defaults=True))
    if visit.failure is not None:
        study.tell(trial, state=TrialState.FAIL)
    else:
        logs = visit.log_speeds()
        study.tell(trial, sum(logs) / len(logs))
