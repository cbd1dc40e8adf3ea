"""Where a winner serves, and how it gets there: the arguments of the stage `deploy`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
)

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.plugins import PluginArgs
from weighbridge.core.versions import is_newer, written_by_newer
from weighbridge.rollout.extra_errors import UNREACHABLE, answers_needed
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
        1800.0, gt=0, description="Seconds after which a step that is not decided is ended."
    )
    start_deadline: float = Field(
        600.0, gt=0, description="Seconds until a real completion must have come back."
    )
    probe_deadline: float = Field(
        120.0, gt=0, description="Seconds until all probe questions must be answered."
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
    max_extra_errors: float = Field(
        0.02,
        gt=0,
        le=1,
        description="Errors that the new version may have more than the old one, of all its "
        "requests. At a share of the traffic so many times more are allowed as keep the cost: ten "
        "times at 10 %.",
    )
    max_latency_ratio: float = Field(
        1.5, ge=1, description="Allowed ratio of the new version's latency to the old's."
    )
    exclude_harm: Literal["busy", "always", "never"] = Field(
        "busy",
        description="When a step passes only once more harm than that is excluded: `busy`, where "
        "clients ask enough for it within the step's deadline; always; or never. Else "
        "`min_requests` answers without a sign of harm do.",
    )
    warm_up: int = Field(
        50, ge=0, description="First answers of the new version whose latency does not count."
    )
    error_rate: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="Chance that a good version is turned back by its errors, and by its latency.",
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

    def most_extra(self, share: int) -> float:
        """Return the extra errors (0 to 1) above which a step at `share` percent excludes all."""
        return min(1.0, self.max_extra_errors * 100 / share)

    @field_validator("steps")
    @classmethod
    def _rising_to_all(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or steps[-1] != 100 or list(steps) != sorted(set(steps)) or steps[0] < 1:
            raise ValueError("must rise from 1 at least and end with 100")
        return steps


class MonitorArgs(BaseModel):
    """How what serves is watched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: int = Field(
        32, ge=1, description="Probe questions at each look; all rows come in turn."
    )
    act_on: tuple[Literal["answers", "errors", "latency"], ...] = Field(
        ("answers", "errors"),
        description="What a version is taken back for; the rest is shown. Latency depends on how "
        "much clients ask at an hour.",
    )
    max_latency_ratio: float = Field(
        2.0, ge=1, description="Of the average latency to the usual one, above which it is slow."
    )
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
        default_factory=RolloutArgs,
        validate_default=True,
        description="How a new version takes over.",
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

    @field_validator("rollout")
    @classmethod
    def _steps_can_be_taken(cls, rollout: RolloutArgs, info: ValidationInfo) -> RolloutArgs:
        """Go over in one step where the address can't share out requests, and refuse others."""
        target: TargetArgs | None = info.data.get("target")
        if target is None or target.splits_traffic or rollout.steps == (100,):
            return rollout
        if "steps" in rollout.model_fields_set:
            listed = ", ".join(map(str, rollout.steps))
            raise ValueError(
                f"steps [{listed}] need an address that shares out requests by percent: name a "
                "gateway in target.gateway, or leave the steps out"
            )
        return rollout.model_copy(update={"steps": (100,)})


def read_deploy_args(name: str, document: Mapping[str, Any], written_by: str = "") -> DeployArgs:
    """Return the arguments of a target, as they were written down.

    Args:
        name: the target's.
        document: the arguments.
        written_by: version of Weighbridge that wrote them; empty: not known.

    Raises:
        BadInput: they are not understood any more.
        Unavailable: a newer version wrote them, and this one does not understand them.
    """
    try:
        return DeployArgs.model_validate(document)
    except ValueError as exc:
        if is_newer(written_by):
            raise Unavailable(f"reading target '{name}'", *written_by_newer(written_by)) from exc
        raise BadInput(f"reading target '{name}'", str(exc), "run its recipe again") from exc


def answers_of_steps(policy: RolloutArgs) -> str:
    """Return what a rollout beside an old version takes, in a sentence."""
    if policy.exclude_harm == "never":
        return f"{policy.min_requests} answers of the new version at each step"
    usual = {"without an error": 0.0, "where both fail at 1 %": 0.01, "at 5 %": 0.05}
    takes = ", ".join(
        f"{_in_words(max(answers_needed(policy.most_extra(s), rate) for s in policy.steps))} {name}"
        for name, rate in usual.items()
    )
    return (
        f"answers of a new version until {100 * policy.max_extra_errors:g} points of extra errors "
        f"are excluded: {takes}"
    )


def _in_words(answers: int) -> str:
    return f"{answers:,}" if answers < UNREACHABLE else "more than any rollout has"


def target_name(name: str) -> str:
    """Return the name. Raises ValueError where the gateway has a section of that name."""
    if name in RESERVED:
        raise ValueError("is a name that the gateway keeps for itself; choose another")
    return name
