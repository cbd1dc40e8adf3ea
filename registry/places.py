"""Which targets a registered model serves at: kept on the model itself, as tags."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Place(BaseModel):
    """A target and the model whose champion it serves."""

    model_config = ConfigDict(frozen=True)

    target: str
    model: str
    deploy: dict[str, Any] = Field(description="The recipe's `deploy` arguments, as JSON.")
