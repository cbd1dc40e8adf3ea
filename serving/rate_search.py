"""The highest rate of requests at which an engine keeps its limits, in bounded time."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from weighbridge.core.errors import Unavailable
from weighbridge.serving.load_figures import MOST_LAG, LoadFigures, SpeedLimits

logger = logging.getLogger(__name__)

RESOLUTION: Final = 0.04
"""Part of a rate below which two are not told apart."""
GROWTH: Final = 1.3
"""Factor to the next rate while none was too high."""


@dataclass
class RateSearch:
    """Looks for the highest rate by which the requests of a run kept the limits."""

    run: Callable[[float], LoadFigures]
    """Measures one rate."""
    limits: SpeedLimits
    tried: list[LoadFigures] = field(default_factory=list)
    low: LoadFigures | None = None
    """The highest that kept them."""
    high: float = math.inf
    """The lowest that did not."""

    def go(self, first: float, most_rates: int) -> LoadFigures | None:
        """Return the figures at the highest rate found; None where none kept the limits.

        Raises:
            Unavailable: the generator could not send as many requests as that in time.
        """
        rate = first
        while len(self.tried) < most_rates and not self._is_found():
            self._try(rate)
            rate = self._next()
        return self.low

    def _try(self, rate: float) -> None:
        figures = self.run(rate)
        if figures.void(self.limits):
            if self.low is not None:
                # What was found below holds; what lies above cannot be seen from here.
                logger.warning("%.3g requests/s do not count: %s", rate, lateness(figures))
                self.high = min(self.high, rate)
                return
            raise Unavailable(
                f"measuring at {rate:.3g} requests per second",
                lateness(figures),
                "measure from a machine with less to do, or with a later limit",
            )
        self.tried.append(figures)
        if keeps(figures, self.limits):
            if self.low is None or rate > (self.low.rate or 0.0):
                self.low = figures
        else:
            self.high = min(self.high, rate)

    def _next(self) -> float:
        low = (self.low.rate if self.low else None) or 0.0
        if math.isinf(self.high):
            return low * GROWTH
        # Without one that kept the limits there is no lower end yet: far down, not half-way.
        return math.sqrt(low * self.high) if low else self.high / 2

    def _is_found(self) -> bool:
        low = (self.low.rate if self.low else None) or 0.0
        return self.high < math.inf and self.high - low <= RESOLUTION * self.high


def lateness(figures: LoadFigures) -> str:
    """Return how late the generator itself was, where that voids a run."""
    return (
        f"the load generator was {figures.lag_p95 or 0:.3g} s late itself, more than "
        f"{MOST_LAG:.0%} of the limit of the time to the first token"
    )


def keeps(figures: LoadFigures, limits: SpeedLimits) -> bool:
    """Whether as many of the requests as must kept the limits, as far as was seen."""
    return not figures.saturated and (figures.within or 0.0) >= limits.percentile


def highest_rate(
    run: Callable[[float], LoadFigures], limits: SpeedLimits, first: float, most_rates: int = 8
) -> tuple[LoadFigures | None, Sequence[LoadFigures]]:
    """Return the figures at the highest rate at which the limits held, and all that were tried.

    Args:
        run: measures one rate.
        limits: what must hold.
        first: rate that is tried first.
        most_rates: how many rates are tried at most.
    """
    search = RateSearch(run, limits)
    found = search.go(first, most_rates)
    return found, search.tried
