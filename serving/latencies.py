"""Latencies of a run, with those that nobody saw the end of: they must count, and cannot be
averaged.
"""

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.formatting import UNKNOWN, between_seconds, human_seconds
from weighbridge.serving.quantiles import fewest_for_interval, interval_ranks, percentile

KEPT: Final = 2000
"""Of longer runs so many are kept, evenly spaced: a percentile moves by a twentieth of a point."""


class Latencies(BaseModel):
    """One latency of every request of a run, in seconds."""

    model_config = ConfigDict(frozen=True)

    seen: tuple[float, ...] = Field((), description="In ascending order, at most 2,000 of them.")
    count: int = Field(0, description="How many were seen.")
    open: tuple[float, ...] = Field(
        (), description="Ages of those still under way when the run ended, at most 2,000 of them."
    )
    open_count: int = 0
    never: int = Field(0, description="Requests that failed before: they have none at all.")

    @classmethod
    def of(cls, seen: Iterable[float], open: Iterable[float] = (), never: int = 0) -> "Latencies":
        """Return them sorted, and thinned where there are very many."""
        ended, under_way = sorted(seen), sorted(open)
        return cls(
            seen=_thinned(ended),
            count=len(ended),
            open=_thinned(under_way),
            open_count=len(under_way),
            never=never,
        )

    @property
    def total(self) -> int:
        return self.count + self.open_count + self.never

    def percentile(self, part: float) -> float | None:
        """Return a percentile; None where it lies among requests that nobody saw the end of.

        Requests under way are censored at their age (Kaplan and Meier, 1958); one that failed
        stands behind all others for ever.
        """
        return self._kaplan_meier(part) if self.open else self._plain(part)

    def interval(self, part: float, confidence: float = 0.95) -> tuple[float, float] | None:
        """Return between which two latencies the percentile lies, from order statistics; None
        where there are too few for that.

        Whoever is under way is taken as ending now for the lower end, and as never for the upper,
        which may be infinite.
        """
        ranks = interval_ranks(self.total, part, confidence)
        if ranks is None:
            return None
        low, high = ranks
        soonest = sorted((*self._weighted(self.seen, self.count), *self._weighted_open()))
        return _at_rank(soonest, low), _at_rank(self._weighted(self.seen, self.count), high)

    def told(self, part: float) -> str:
        """Return a percentile with its interval for people: `31 ms (28–40 ms)`, `31 ms (at least
        28 ms)`; of fewer requests than it takes an interval, how many there are.
        """
        found, value = self.interval(part), self.percentile(part)
        if found is None:
            return f"{UNKNOWN} ({self.total} of {fewest_for_interval(part)} requests)"
        told = UNKNOWN if value is None else human_seconds(value)
        low, high = found
        if math.isfinite(high):
            return f"{told} ({between_seconds(low, high)})"
        return f"{told} ({f'at least {human_seconds(low)}' if math.isfinite(low) else 'no answer'})"

    def overruns(self, limit: float) -> tuple[int, int]:
        """Return how many certainly took longer than `limit`, and how many may have."""
        late = _beyond(self.seen, limit, self.count)
        old = _beyond(self.open, limit, self.open_count)
        return late + old + self.never, late + self.open_count + self.never

    def _plain(self, part: float) -> float | None:
        position = part * (self.total - 1)
        if not self.count or math.ceil(position) > self.count - 1:
            return None
        return percentile(self.seen, position / max(self.count - 1, 1))

    def _kaplan_meier(self, part: float) -> float | None:
        ended = [(value, weight, True) for value, weight in self._weighted(self.seen, self.count)]
        open_ones = [(age, weight, False) for age, weight in self._weighted_open()]
        # At one moment, what ended counts before what was cut off.
        events = sorted((*ended, *open_ones), key=lambda event: (event[0], not event[2]))
        at_risk, surviving = float(self.total), 1.0
        for value, weight, has_ended in events:
            if has_ended:
                surviving *= 1 - weight / at_risk
                if 1 - surviving >= part - 1e-9:
                    return value
            at_risk -= weight
        return None

    def _weighted_open(self) -> list[tuple[float, float]]:
        return self._weighted(self.open, self.open_count)

    @staticmethod
    def _weighted(values: Sequence[float], count: int) -> list[tuple[float, float]]:
        return [(value, count / len(values)) for value in values]


def _thinned(ordered: Sequence[float]) -> tuple[float, ...]:
    if len(ordered) <= KEPT:
        return tuple(ordered)
    step = (len(ordered) - 1) / (KEPT - 1)
    return tuple(ordered[round(number * step)] for number in range(KEPT))


def _beyond(ordered: Sequence[float], limit: float, count: int) -> int:
    if not ordered:
        return 0
    return round((len(ordered) - bisect.bisect_right(ordered, limit)) * count / len(ordered))


def _at_rank(weighted: Sequence[tuple[float, float]], rank: int) -> float:
    """Return the value that this rank falls on, infinity behind the last."""
    reached = 0.0
    for value, weight in weighted:
        reached += weight
        if reached >= rank - 1e-9:
            return value
    return math.inf
