"""Where stages run, as a recipe says it: in the flow's own process, or on Prefect's work pools."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, WrapValidator

PLACED: Final = ("download", "finetune", "evaluate", "optimize", "weigh", "package")
"""Stages that may run elsewhere. `select` is a moment's work, and `deploy` is of the target."""
_RUNS_AS: Final = {"repeat": "weigh"}
"""Stages that run where another one does: repeats are of the machines that were weighed on."""


class PoolArgs(BaseModel):
    """A work pool of Prefect's, and what its jobs are given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool: str = Field(min_length=1, description="Name of the work pool.")
    job_variables: dict[str, Any] = Field(
        default_factory=dict,
        description="What the pool's job template is filled in with, such as `{cpu_request: 8}`. "
        "No secrets: they are shown.",
    )
    start_deadline: float = Field(
        900.0,
        gt=0,
        description="Seconds within which a job must have begun once a worker has taken it, and "
        "for which the pool may be without a worker.",
    )
    retries: int = Field(
        2,
        ge=0,
        description="How often it is begun again after its process or its machine was lost.",
    )


def _place(value: Any, _: Any) -> PoolArgs | Literal["here"]:
    # Not by the union: its errors name every member that a value might have been.
    if value == "here":
        return "here"
    if not isinstance(value, dict | PoolArgs):
        raise ValueError("must be `here`, or a work pool: {pool: NAME}")
    return PoolArgs.model_validate(value)


Here = Annotated[Literal["here"], Field(title="here")]
Place = Annotated[PoolArgs | Here, WrapValidator(_place)]


class RunArgs(BaseModel):
    """Where each stage runs; `here` is the process of the flow."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: Place = Field("here", description="Of the stages that are not named.")
    download: Place | None = Field(None, description="Model and data into the shared store.")
    finetune: Place | None = Field(None, description="Training.")
    evaluate: Place | None = Field(None, description="Fine-tune against base.")
    optimize: Place | None = Field(None, description="All variants, one after another.")
    weigh: Place | None = Field(
        None,
        description="The candidates, side by side on as many machines as the pool has; their "
        "repeats too, all on one.",
    )
    package: Place | None = Field(None, description="The winner's Bento.")

    def place(self, stage: str) -> PoolArgs | None:
        """Return the pool that a stage runs on; None for the flow's own process."""
        name = _RUNS_AS.get(stage, stage)
        if name not in PLACED:
            return None
        place: PoolArgs | Literal["here"] = getattr(self, name) or self.default
        return None if place == "here" else place

    def pools(self) -> list[PoolArgs]:
        """Return every pool that some stage runs on, with what its jobs are given there."""
        places = [place for name in PLACED if (place := self.place(name))]
        return [place for number, place in enumerate(places) if place not in places[:number]]
