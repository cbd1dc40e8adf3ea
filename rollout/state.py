"""The state of a target: what serves there, what is being rolled out, and what should serve.

It lies with the other records of the target (serving/targets/records.py). A home also keeps the
arguments of each target that it deployed to, in HOME/targets/NAME/state.json: so it knows where the
records are. Of a target whose versions run on this machine that file is the state itself.
"""

import contextlib
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from weighbridge.core.errors import Unavailable
from weighbridge.core.versions import own_version, refuse_newer
from weighbridge.serving.targets.base import Release, Revision, Share
from weighbridge.serving.targets.home_records import HomeRecords, folder_of
from weighbridge.serving.targets.records import STATE, TargetRecords

R = TypeVar("R", bound=Revision)

FORM = 1
"""The form in which states are written; it goes up where an older version must not read them."""
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
    waits_for: str = Field("", description="What this step waits for, in a sentence.")
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
    form: int = Field(1, description="Goes up where older versions must not read it any more.")
    written_by: str = Field("", description="Version of Weighbridge that wrote it last.")


class _Head(BaseModel):
    """What every form of a state has."""

    form: int = 1
    written_by: str = ""


def known_targets(home: Path) -> list[str]:
    """Return the name of every target that this home has deployed to."""
    return sorted(path.parent.name for path in (home / "targets").glob(f"*/{STATE}"))


def home_records(name: str, home: Path) -> HomeRecords:
    """Return what this home keeps of a target."""
    return HomeRecords(folder_of(name, home))


def read_state(records: TargetRecords, revision_model: type[Revision]) -> TargetState[Any]:
    """Return the state among a target's records; an empty one where there is none.

    Args:
        records: the target's.
        revision_model: what its revisions are; with `Revision` only what is common to all targets
            is read.

    Raises:
        Unavailable: it is damaged, or the place of the records does not answer.
    """
    return parse_state(records.read(STATE).content, revision_model, records.place)


def parse_state(content: bytes, revision_model: type[Revision], place: str) -> TargetState[Any]:
    """Return the state that a document holds, of records at this place. Raises Unavailable."""
    if not content:
        return TargetState()
    doing = f"reading {STATE} of {place}"
    try:
        state = _model(revision_model).model_validate_json(content)
    except ValidationError as exc:
        _refuse_newer_form(doing, content)
        raise Unavailable(doing, "it is damaged", "remove it, then deploy again") from exc
    refuse_newer(doing, state.form, FORM, state.written_by)
    return state


# pydantic forgets such a model when nobody holds it, and makes it anew in 10 ms of CPU time.
@cache
def _model(revision_model: type[Revision]) -> type[TargetState[Any]]:
    return TargetState[revision_model]  # type: ignore[valid-type]


def _refuse_newer_form(doing: str, content: bytes) -> None:
    """Raise Unavailable where a newer version wrote what can't be read as a state."""
    with contextlib.suppress(ValueError):
        head = _Head.model_validate_json(content)
        refuse_newer(doing, head.form, FORM, head.written_by)


def state_document(state: TargetState[Any]) -> bytes:
    """Return the document that holds a state."""
    signed = state.model_copy(update={"form": FORM, "written_by": own_version()})
    return signed.model_dump_json(indent=1).encode()


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


def previous_releases(
    state: TargetState[R], rollout: OngoingRollout[R], most: int
) -> tuple[Release, ...]:
    """Return the releases to go back to once a rollout is finished, newest first, each version
    once.
    """
    new, old = rollout.next.release, rollout.previous
    releases = state.previous_releases
    if old is not None:
        others = (release for release in releases if release.version != old.release.version)
        releases = (old.release, *others)
    return tuple(release for release in releases if release.version != new.version)[:most]
