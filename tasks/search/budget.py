"""What a search may cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from weighbridge.core.errors import BadInput
from weighbridge.tasks.search.visits import Visit


@dataclass(frozen=True)
class Budget:
    """Seconds, starts of an engine, or both: whichever is used up first."""

    seconds: float | None = None
    trials: int | None = None

    def used(self, visits: Sequence[Visit]) -> float:
        """Return which part of it these visits have used."""
        spent = sum(visit.seconds for visit in visits)
        return max(
            spent / self.seconds if self.seconds else 0.0,
            len(visits) / self.trials if self.trials else 0.0,
        )

    def allows(self, visits: Sequence[Visit]) -> bool:
        """Whether one more visit fits, going by how long those before took."""
        if self.trials is not None and len(visits) >= self.trials:
            return False
        worked = [visit.seconds for visit in visits if visit.failure is None]
        expected = sum(worked) / len(worked) if worked else 0.0
        spent = sum(visit.seconds for visit in visits)
        return self.seconds is None or spent + expected <= self.seconds

    def require_one_start(self, visits: Sequence[Visit]) -> None:
        """Refuse a budget that the first start alone has used up; one that failed says more itself.

        Raises:
            BadInput: it has.
        """
        if self.seconds is None or len(visits) != 1 or visits[0].failure is not None:
            return
        if (spent := visits[0].seconds) > self.seconds:
            raise BadInput(
                "searching",
                f"one start and its runs take {spent:.1f} s, and the budget is {self.seconds:g} s",
                f"give weigh.search.seconds at least {10 * spent:.0f}",
            )
