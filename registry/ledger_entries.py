"""The lines of the ledger: what happened in a rollout, in that order."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class LedgerEntry(BaseModel):
    """One line of the ledger: an intent before its effect, or an end."""

    model_config = ConfigDict(frozen=True)

    rollout: str = Field(description="Id of the rollout, made where it began.")
    n: int = Field(description="Number of the line within its rollout, from 0.")
    at: float = Field(description="Unix time.")
    event: str = Field(
        description="`begin`, `start`, `probe`, `shift`, `commit`, `drain`, `stop`, `back`, …, "
        "`end`."
    )
    fields: dict[str, Any] = Field(
        default_factory=dict,
        description="begin: target, model, version, previous, trigger, digests. end: outcome, "
        "verdict, detail, evidence, requests, failed, cut. Others: whatever the event is about.",
    )
