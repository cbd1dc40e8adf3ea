"""The state of a target: what serves there, what is being rolled out, and what should serve.

It is kept in the target's folder, beside what else is known of the target::

    HOME/targets/NAME/state.json      the state; gateway and supervisord are made to follow it
    HOME/targets/NAME/ledger.jsonl    lines of the ledger that MLflow may not have yet (outbox.py)
    HOME/targets/NAME/orders.json     what people told the rollout (operator_commands.py)
    HOME/targets/NAME/checks.json     what monitoring saw (flows/monitor.py)
    HOME/targets/NAME/restart.json    the last restart of an engine that hung (engine_watch.py)
    HOME/targets/NAME/lock            held by whoever changes anything; the kernel frees it when its
                                      holder dies
    HOME/targets/NAME/state.lock      held for one change of the state, or for making the gateway
                                      follow it: new arguments do not wait for a rollout to end
"""

from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from weighbridge.core.disk import recording
from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_text
from weighbridge.serving.targets.base import Release, Revision, Share

R = TypeVar("R", bound=Revision)

FIRST_RETRY = 15.0
"""Seconds, doubled at each try, until a release that could not be judged is tried again."""
LONGEST_RETRY = 3600.0
"""Seconds after which it is tried again at the latest."""


class OngoingRollout(BaseModel, Generic[R]):
    """A rollout that has begun and not ended."""

    model_config = ConfigDict(frozen=True)

    id: str
    trigger: str
    began: float = Field(description="Unix time.")
    next: R = Field(description="What is being rolled out.")
    previous: R | None = Field(None, description="What served when it began.")
    phase: str = Field("begin", description="Name of the step in the ledger.")
    admitted: bool = Field(
        False, description="The gateway knows it; with share 0 only pinned requests reach it."
    )
    share: int = Field(0, description="Percent of new requests that it gets.")
    shown: str = Field("", description="What its last step has shown, in a sentence.")
    swap: bool = Field(
        False, description="Memory does not hold both: the old one was stopped first."
    )
    committed: bool = Field(
        False, description="From here on it is finished, and never rolled back."
    )


class DrainingRevision(BaseModel, Generic[R]):
    """A revision that gets nothing new and finishes the requests that it has."""

    model_config = ConfigDict(frozen=True)

    revision: R
    until: float = Field(description="Unix time at which it is stopped in any case.")
    rollout: str = Field(description="Id of the rollout that made it drain.")


class FailedRollout(BaseModel):
    """The last rollout that failed. Its release is not tried again by itself, or only later."""

    model_config = ConfigDict(frozen=True)

    release: Release
    verdict: str
    why: str
    at: float = Field(description="Unix time.")
    tries: int

    @property
    def retry_at(self) -> float:
        """Unix time from which the release may be tried again without being asked for.

        Never where it was found bad. Where it could not be judged: later after each try.
        """
        if self.verdict == "fail":
            return float("inf")
        return self.at + min(LONGEST_RETRY, FIRST_RETRY * 2.0**self.tries)


class TargetState(BaseModel, Generic[R]):
    """All that is known of a target.

    The second name of a field is an older one: files that were written with it are still read.
    """

    model_config = ConfigDict(frozen=True)

    current: R | None = Field(None, description="What serves.")
    rollout: OngoingRollout[R] | None = None
    draining: tuple[DrainingRevision[R], ...] = Field(
        (), validation_alias=AliasChoices("draining", "retiring")
    )
    previous_releases: tuple[Release, ...] = Field(
        (),
        validation_alias=AliasChoices("previous_releases", "kept"),
        description="Served before, newest first: what `rollback` goes back to.",
    )
    last_failure: FailedRollout | None = Field(
        None, validation_alias=AliasChoices("last_failure", "failed")
    )
    deploy_args: dict[str, Any] = Field(
        default_factory=dict,
        validation_alias=AliasChoices("deploy_args", "deploy"),
        description="The arguments in force, whether or not a version was rolled out by them.",
    )
    deploy_args_since: float = Field(
        0.0,
        description="Unix time at which they were given; 0: not known. Earlier ones never replace "
        "them.",
    )
    desired_version: str = Field(
        "",
        validation_alias=AliasChoices("desired_version", "wish"),
        description="Version that the alias named when it was last read.",
    )
    reason: str = Field(
        "",
        validation_alias=AliasChoices("reason", "note"),
        description="Why what serves is not the desired version.",
    )
    alias_warning: str = Field(
        "", description="Of an alias that somebody may have meant as the one that is followed."
    )


def folder_of(name: str, home: Path) -> Path:
    """Return the folder in which the target's files are."""
    return home / "targets" / name


def known_targets(home: Path) -> list[str]:
    """Return the name of every target that something was deployed to."""
    return sorted(path.parent.name for path in (home / "targets").glob("*/state.json"))


def state_file(folder: Path) -> Path:
    """Return the file with the state, in the target's folder."""
    return folder / "state.json"


def read_state(folder: Path, revision_model: type[Revision]) -> TargetState[Any]:
    """Return the state kept in a target's folder; an empty one where there is none.

    Args:
        folder: the target's.
        revision_model: what its revisions are; with `Revision` only what is common to all targets
            is read.

    Raises:
        Unavailable: the file is damaged.
    """
    path = state_file(folder)
    model = TargetState[revision_model]  # type: ignore[valid-type]
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return TargetState()
    except (ValueError, ValidationError) as exc:
        raise Unavailable(
            f"reading {path}", "it is damaged", "remove it, then deploy again"
        ) from exc


def write_state(folder: Path, state: TargetState[Any]) -> None:
    """Write the state into a target's folder, whole or not at all.

    Raises:
        Unavailable: the disk is full.
    """
    with recording(state_file(folder)):
        replace_text(state_file(folder), state.model_dump_json(indent=1))


def traffic_shares(state: TargetState[R]) -> list[Share[R]]:
    """Return who gets how much of the new requests, as the state says."""
    shares: list[Share[R]] = [
        Share(revision=draining.revision, weight=0, draining=True) for draining in state.draining
    ]
    rollout, current = state.rollout, state.current
    # A rollout that is committed takes all, also where a process died before it was finished.
    if rollout is not None and (rollout.admitted or rollout.committed):
        weight = 100 if rollout.committed else rollout.share
        shares.append(Share(revision=rollout.next, weight=weight))
        if current is not None and not rollout.swap:
            shares.append(Share(revision=current, weight=100 - weight))
    elif current is not None:
        # The old version was stopped to make room: it must get nothing until it runs again.
        swapped = rollout is not None and rollout.swap
        shares.append(Share(revision=current, weight=0 if swapped else 100, draining=swapped))
    return shares
