"""Settings of an engine's options that were tried for a candidate, and the choice among them."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from weighbridge.core.errors import Unavailable
from weighbridge.serving.engines.base import EngineArgs
from weighbridge.tasks.measurement import Candidate

NOISE: Final = 0.03
"""Part by which two short runs of the same thing may differ."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """One setting of an engine's options, measured briefly."""

    args: EngineArgs
    tokens_per_second: float = 0.0
    """Geometric mean over the concurrencies."""
    ttft_p95: float = 0.0
    """At the highest concurrency."""
    problem: str | None = None
    """Why it could not be measured."""

    def note(self, left_open: EngineArgs) -> dict[str, int | float | str]:
        """Return what was tried, as the options that the recipe left open, and its figures."""
        note: dict[str, int | float | str] = {
            name: value if isinstance(value, int | float) else str(value)
            for name, value in self.args.model_dump().items()
            if value != getattr(left_open, name)
        }
        note |= {"tokens_per_second": round(self.tokens_per_second, 1)}
        if math.isfinite(self.ttft_p95):
            note["ttft_p95"] = round(self.ttft_p95, 4)
        return note | ({} if self.problem is None else {"problem": self.problem})


def best(settings: Sequence[Setting], candidate: Candidate) -> Setting:
    """Return the setting to take: among those whose speeds cannot be told apart, the one with the
    shortest time to the first token.

    Raises:
        Unavailable: none could be measured.
    """
    winner = min(_near(settings, NOISE), key=lambda setting: setting.ttft_p95)
    if winner.problem is not None:
        raise Unavailable(f"tuning {candidate.label}", winner.problem)
    logger.info(
        "%s: of %d settings the best is %s",
        candidate.label,
        len(settings),
        ", ".join(f"{name} {value}" for name, value in winner.note(candidate.engine).items()),
    )
    return winner


def _near(settings: Sequence[Setting], noise: float) -> list[Setting]:
    """Return those whose speed cannot be told from the highest, fastest first."""
    fastest = sorted(settings, key=lambda setting: setting.tokens_per_second, reverse=True)
    slowest = fastest[0].tokens_per_second * (1 - noise)
    return [setting for setting in fastest if setting.tokens_per_second >= slowest]
