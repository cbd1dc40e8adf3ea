"""The space of a search: every setting that is worth a thought, as plain values.

A setting says which candidate it is (`candidate`) and the options it has beside those of the
recipe. Settings of different engines have different options.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from weighbridge.core.errors import BadInput

CANDIDATE: Final = "candidate"
"""The key under which a setting says which candidate it belongs to."""
MOST_SETTINGS: Final = 20_000
"""More would take seconds per question; a space this large is better cut by who knows it."""

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Branch:
    """One candidate with the options to try on it."""

    candidate: str
    options: Mapping[str, Sequence[Any]]
    """Values by option."""
    listed: Sequence[Setting] = ()
    """Settings one by one in place of all combinations; the first is the default."""
    default: Setting = field(default_factory=dict)
    """What the engine has by default, of options of which that is not the first value."""
    beside: Setting = field(default_factory=dict)
    """What it runs with beside the options that are tried; conditions may name it as well."""

    def settings(self) -> list[Setting]:
        """Return the engine's defaults, and every combination that is another one."""
        if self.listed:
            return [{CANDIDATE: self.candidate, **setting} for setting in self.listed]
        combinations = [
            {CANDIDATE: self.candidate, **dict(zip(self.options, values, strict=True))}
            for values in itertools.product(*self.options.values())
        ]
        default = {**combinations[0], **self.default}
        known = key_of(default)
        return [default, *(one for one in combinations if key_of(one) != known)]


@dataclass(frozen=True)
class Space:
    """Settings that may be tried."""

    settings: tuple[Setting, ...]
    defaults: tuple[int, ...]
    """Numbers of the settings that engines have by themselves."""

    def choices(self) -> dict[str, list[Any]]:
        """Return the values of every option, in the order in which they come."""
        found: dict[str, dict[str, Any]] = {}
        for setting in self.settings:
            for name, value in setting.items():
                found.setdefault(name, {}).setdefault(key_of(value), value)
        return {name: list(values.values()) for name, values in found.items()}

    def codes(self) -> list[list[int]]:
        """Return each setting as the numbers of its values; -1 where it lacks an option."""
        numbers = {
            name: {key_of(value): number for number, value in enumerate(values)}
            for name, values in self.choices().items()
        }
        return [
            [
                known[key_of(setting[name])] if name in setting else -1
                for name, known in numbers.items()
            ]
            for setting in self.settings
        ]

    def number(self, setting: Setting) -> int:
        """Return the number of a setting of this space."""
        return [key_of(known) for known in self.settings].index(key_of(setting))

    def overrides(self, number: int) -> int:
        """Return in how many options a setting differs from its candidate's defaults."""
        setting = self.settings[number]
        default = next(
            (
                self.settings[index]
                for index in self.defaults
                if self.settings[index].get(CANDIDATE) == setting.get(CANDIDATE)
            ),
            {},
        )
        return sum(key_of(default.get(name)) != key_of(value) for name, value in setting.items())


def key_of(value: Any) -> str:
    """Return a text that is equal for equal values, whatever they are made of."""
    return json.dumps(value, sort_keys=True, default=str)


def space_of(branches: Sequence[Branch], unless: Sequence[Mapping[str, Any]] = ()) -> Space:
    """Return the space of several candidates without what is not to be tried together.

    Defaults stay in whatever the recipe leaves out: they are what everything is held against.

    Raises:
        BadInput: it is too large, or a branch gives one option no value.
    """
    size = sum(_size(branch) for branch in branches)
    if size > MOST_SETTINGS:
        raise BadInput(
            "making the space of the search",
            f"it has {size:,} settings, and {MOST_SETTINGS:,} are the most",
            "give fewer values in weigh.search.options",
        )
    settings: list[Setting] = []
    defaults = []
    for branch in branches:
        first, *others = branch.settings()
        defaults.append(len(settings))
        settings += [first]
        settings += [one for one in others if not _left_out({**branch.beside, **one}, unless)]
    return Space(tuple(settings), tuple(defaults))


def without(space: Space, refused: Mapping[int, str]) -> Space:
    """Return the space without the settings of these numbers.

    Raises:
        BadInput: nothing is left; says why the first was refused.
    """
    kept = [number for number in range(len(space.settings)) if number not in refused]
    if not kept:
        raise BadInput(
            "checking the space of the search",
            f"none of its {len(space.settings)} settings can work: {next(iter(refused.values()))}",
            "change weigh.search.options, or for less memory weigh.concurrency and weigh.context",
        )
    return Space(
        tuple(space.settings[number] for number in kept),
        tuple(kept.index(number) for number in space.defaults if number not in refused),
    )


def _size(branch: Branch) -> int:
    return len(branch.listed) or math.prod(len(values) for values in branch.options.values())


def _left_out(setting: Setting, unless: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a setting has all the values of one of these; a list there means any of it."""
    return any(
        all(
            name in setting
            and key_of(setting[name])
            in {key_of(value) for value in (values if isinstance(values, list) else [values])}
            for name, values in together.items()
        )
        for together in unless
    )
