"""Find which package's update breaks which contract, trying as few sets of updates as possible."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Trial = Callable[[Sequence[str]], Mapping[str, str]]
"""Updates only these packages and what they need; returns the errors of what breaks then."""


@dataclass(frozen=True)
class BrokenContract:
    """A contract that breaks, and the packages whose update does it."""

    contract: str
    packages: tuple[str, ...]
    error: str


def attribute(
    broken: Mapping[str, str], direct: Sequence[str], every: Sequence[str], trial: Trial
) -> list[BrokenContract]:
    """Return which packages break each broken contract.

    `broken` has the error of every contract that breaks with everything updated. Each of the
    `direct` dependencies is updated alone; two that break the same contract are both found. For
    what none of them breaks alone, `every` package, indirect ones too, is searched for the smallest
    set that does it.
    """
    blamed: list[BrokenContract] = []
    for name in direct:
        errors = trial([name])
        blamed += [
            BrokenContract(contract, (name,), errors[contract])
            for contract in broken
            if contract in errors
        ]
    explained = {blame.contract for blame in blamed}
    for contract in broken:
        if contract not in explained:
            blamed.append(_fewest(contract, broken[contract], every, trial))
    return blamed


def _fewest(contract: str, error: str, every: Sequence[str], trial: Trial) -> BrokenContract:
    """Return the smallest set of updates that breaks a contract, found by delta debugging: no
    package can be left out of it.
    """
    # Remembered: a trial installs packages and runs contracts, and sets come up again.
    errors: dict[tuple[str, ...], str | None] = {(): None}

    def breaks(names: Sequence[str]) -> bool:
        key = tuple(names)
        if key not in errors:
            errors[key] = trial(names).get(contract)
        return errors[key] is not None

    if not breaks(every):
        return BrokenContract(contract, (), error)
    # Zeller and Hildebrandt's `ddmin` (2002): try the parts, then all but one of them, then smaller
    # parts.
    suspects, parts = list(every), 2
    while len(suspects) >= 2:
        size = -(-len(suspects) // parts)
        chunks = [suspects[start : start + size] for start in range(0, len(suspects), size)]
        rests = [[name for name in suspects if name not in chunk] for chunk in chunks]
        smaller = next((names for names in (*chunks, *rests) if breaks(names)), None)
        if smaller is not None:
            parts = 2 if smaller in chunks else max(parts - 1, 2)
            suspects = smaller
        elif parts < len(suspects):
            parts = min(2 * parts, len(suspects))
        else:
            break
    return BrokenContract(contract, tuple(suspects), errors[tuple(suspects)] or error)
