"""Contracts run with one set of versions after another, in one throw-away environment."""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from weighbridge.compat.locked_environments import Contract
from weighbridge.compat.report import ContractResult
from weighbridge.compat.resolution import Versions
from weighbridge.compat.throwaway import ThrowAwayEnvironment
from weighbridge.core.environments import Unresolvable
from weighbridge.core.errors import Unavailable

logger = logging.getLogger(__name__)

INSTALLS: Final = "it installs"
"""Named like a contract: the first of all."""
_PACKAGES_FAULT: Final = re.compile(
    r"failed to build|build backend|no (matching|compatible)|no wheels", re.IGNORECASE
)


@dataclass(frozen=True)
class Clock:
    """How much of the time is left."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)


def is_packages_fault(exc: Unavailable) -> bool:
    """Whether it is the packages that cannot be had, and not the index that cannot be reached."""
    return isinstance(exc, Unresolvable) or bool(_PACKAGES_FAULT.search(exc.wrong))


@dataclass(frozen=True)
class Trials:
    """Runs contracts in an environment that is moved to the versions wanted."""

    throwaway: ThrowAwayEnvironment
    clock: Clock
    seconds: float
    """Most that one contract may take."""
    prepare: Callable[[], str | None]
    """Called before contracts run; says what is wrong, None where nothing is."""
    _known: dict[tuple[str, frozenset[tuple[str, str]]], ContractResult] = field(
        default_factory=dict
    )

    def results(self, versions: Versions, contracts: Sequence[Contract]) -> list[ContractResult]:
        """Return a result for each contract that time was left for; a single one where the versions
        cannot be installed.

        Raises:
            Unavailable: the package index cannot be reached, or the contracts cannot be prepared.
        """
        if self.clock.left() <= 0:
            return []
        try:
            self.throwaway.move(versions)
        # A release that cannot be installed is a finding; an index that is away ends the check.
        except Unavailable as exc:
            if not is_packages_fault(exc):
                raise
            return [ContractResult(contract=INSTALLS, holds=False, error=exc.wrong, seconds=0.0)]
        if (wrong := self.prepare()) is not None:
            raise Unavailable(f"preparing the contracts of {self.throwaway.locked.name}", wrong)
        return [self._one(contract, versions) for contract in contracts if self.clock.left() > 0]

    def run(self, versions: Versions, contracts: Sequence[Contract]) -> dict[str, str]:
        """Return the errors of the contracts that break with these versions."""
        return {
            result.contract: result.error
            for result in self.results(versions, contracts)
            if not result.holds
        }

    def _one(self, contract: Contract, versions: Versions) -> ContractResult:
        key = (contract.name, frozenset(versions.items()))
        if key in self._known:
            return self._known[key]
        # A second at least: time may have run out since somebody looked.
        result = self._known[key] = self.throwaway.run(
            contract, min(self.seconds, max(1.0, self.clock.left()))
        )
        outcome = "holds" if result.holds else result.error
        logger.info(
            "%s: %s: %s (%.1f s)",
            self.throwaway.locked.name,
            contract.name,
            outcome,
            result.seconds,
        )
        return result
