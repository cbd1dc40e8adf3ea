"""Where a winner serves, and how it gets there: the arguments of the stage `deploy`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, SerializeAsAny, field_validator

from weighbridge.core.plugins import PluginArgs
from weighbridge.serving.gateway.config import RESERVED
from weighbridge.serving.targets.base import TargetArgs
from weighbridge.serving.targets.local import LocalArgs


class RolloutArgs(BaseModel):
    """How a new version takes over from the one that serves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: tuple[int, ...] = Field(
        (10, 50, 100), description="Percent of new requests that it gets, step by step."
    )
    step_seconds: float = Field(5.0, ge=0, description="Shortest time of a step.")
    step_deadline: float = Field(
        120.0, gt=0, description="Seconds after which a step that is not decided is ended."
    )
    start_deadline: float = Field(
        600.0, gt=0, description="Seconds until a real completion must have come back."
    )
    drain_seconds: float = Field(
        300.0,
        ge=0,
        description="Longest time that the old version has to finish its requests; "
        "then they are cut.",
    )
    min_requests: int = Field(
        20,
        ge=1,
        description="Answers of the new version that a step takes; probe questions where clients "
        "ask too few.",
    )
    questions: int = Field(
        32, ge=0, description="Probe questions, rows of the version's own measurement."
    )
    max_score_drop: float = Field(
        0.1, ge=0, le=1, description="Allowed fall of the probe's score under that measured."
    )
    max_latency_ratio: float = Field(
        2.0, ge=1, description="Allowed ratio of the new version's latency to the old's."
    )
    error_rate: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="Chance that a good version is turned back by one of the comparisons.",
    )
    memory_factor: float = Field(
        2.0, ge=1, description="Allowed ratio of its memory to the peak that was measured."
    )
    memory_reserve: ByteSize = Field(
        ByteSize(512 << 20), ge=0, description="Memory that a rollout leaves free on the machine."
    )
    on_inconclusive: Literal["rollback", "pause"] = Field(
        "rollback",
        description="What follows when a step can't be decided: no data is never a pass.",
    )

    @field_validator("steps")
    @classmethod
    def _rising_to_all(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or steps[-1] != 100 or list(steps) != sorted(set(steps)) or steps[0] < 1:
            raise ValueError("must rise from 1 at least and end with 100")
        return steps


class MonitorArgs(BaseModel):
    """How what serves is watched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: int = Field(16, ge=1, description="Probe questions at each look.")
    metric: str = Field(
        "", description="Metric that the floor is of; empty: the one that `select` chooses by."
    )
    floor: float | None = Field(
        None,
        description="Below it twice in a row, the version before serves again; empty: the floor "
        "of `select`.",
    )


class DeployArgs(BaseModel):
    """Where the winner is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        "",
        # It names a folder, programs of supervisord and sections of haproxy's configuration.
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$",
        description="Name of the target, as `weighbridge ask NAME` knows it; empty: the recipe's "
        "name.",
    )
    # SerializeAsAny: else only the fields that all targets have would be written down.
    target: Annotated[SerializeAsAny[TargetArgs], PluginArgs("target")] = Field(
        default_factory=LocalArgs, description="What kind of target it is, and its address."
    )
    rollout: RolloutArgs = Field(
        default_factory=RolloutArgs, description="How a new version takes over."
    )
    monitor: MonitorArgs = Field(
        default_factory=MonitorArgs, description="How what serves is watched."
    )
    promote: Literal["always", "first", "never"] = Field(
        "always",
        description="When the winner serves without being asked: always, where nothing serves "
        "yet, or never; otherwise it waits as `challenger` until somebody moves the alias "
        "`champion`.",
    )

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        return target_name(name)


def target_name(name: str) -> str:
    """Return the name. Raises ValueError where the gateway has a section of that name."""
    if name in RESERVED:
        raise ValueError("is a name that the gateway keeps for itself; choose another")
    return name
