"""What a Bento says about itself, in `candidate.json` beside its packages."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class BentoCandidate(BaseModel):
    """Which engine serves which model, and in which environment."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="Name of the service and of the Bento.")
    label: str = Field(description="The candidate's label in the weighing.")
    engine: dict[str, Any] = Field(
        description="The engine's arguments, with `kind`, as they were weighed."
    )
    model: str = Field(description="Tag of the model in BentoML's store.")
    takes_name: bool = Field(
        False,
        description="Whether WEIGHBRIDGE_MODEL_NAME says by which name clients call the model.",
    )
    lock: str = Field(description="The environment's lock, relative to the Bento's `src`.")
