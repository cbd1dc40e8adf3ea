"""What becomes of a claim: shown, refuted or undecided."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["shown", "refuted", "undecided"]


class Claim(BaseModel):
    """A verdict with the figures that it was read from."""

    # JSON has no infinity: where nothing is known, an interval has no ends.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    verdict: Verdict
    estimate: float = Field(description="What was seen, in the unit that `why` names.")
    low: float = Field(description="Lower end of its 95 % interval, or of the level `why` names.")
    high: float
    why: str = Field(description="One sentence with its figures.")
    how: str = Field(
        "", description="What was compared by which rows; those that one side lacks are named."
    )
    needed: int | None = Field(
        None, description="Rows or repeats that would decide; None: decided already, or unknown."
    )
