"""What is known of a rule: a claim with its figures, and whether what was seen keeps the rule."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.tasks.statistics.verdict import Claim, Verdict

Rows = Literal["validation", "test", ""]


class Evidence(BaseModel):
    """One rule, and what the measurements say of it."""

    model_config = ConfigDict(frozen=True)

    rule: str = Field(description="Field of `select` in the recipe, or what is to be shown.")
    rows: Rows = Field("", description="Split that it was judged on; empty: no rows decide it.")
    claim: Claim = Field(description="Shown: the rule is kept. Refuted: it is broken.")
    seen: bool = Field(
        description="Whether the estimate keeps the rule, however wide its interval is."
    )


def exact(rule: str, kept: bool, why: str, value: float = math.nan) -> Evidence:
    """Return what a figure decides that has no interval: a size, a load that was not measured."""
    claim = Claim(
        verdict="shown" if kept else "refuted", estimate=value, low=value, high=value, why=why
    )
    return Evidence(rule=rule, claim=claim, seen=kept)


def unknown(rule: str, why: str, needed: int | None = None) -> Evidence:
    """Return that nothing can be said of a rule."""
    claim = Claim(
        verdict="undecided", estimate=math.nan, low=-math.inf, high=math.inf, why=why, needed=needed
    )
    return Evidence(rule=rule, claim=claim, seen=False)


def all_of(pieces: Iterable[Evidence]) -> Verdict:
    """Return the verdict on rules that must all be kept.

    None of them takes a correction for their number: to pass wrongly, a candidate has to pass the
    rule that it breaks. R. L. Berger, Multiparameter hypothesis testing and acceptance sampling,
    Technometrics 24 (1982), 295-300 (intersection-union).
    """
    verdicts = {piece.claim.verdict for piece in pieces}
    if "refuted" in verdicts:
        return "refuted"
    return "undecided" if "undecided" in verdicts else "shown"


def reasons(pieces: Sequence[Evidence], verdict: Verdict) -> str:
    """Return what is to be said of the rules with a verdict, each once."""
    said = [piece.claim.why for piece in pieces if piece.claim.verdict == verdict]
    return "; ".join(dict.fromkeys(said))
