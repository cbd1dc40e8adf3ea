"""The ledger in MLflow: experiment `weighbridge.deployments`, one run per rollout, one tag per
line.

A mirror: the lines are written to a file on the machine first, and brought here when MLflow
answers. Bringing the same lines again changes nothing, whoever did it before and wherever that was
broken off.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.formatting import one_line
from weighbridge.registry.connection import Connection, checked_name
from weighbridge.registry.ledger_entries import LedgerEntry
from weighbridge.registry.runs import NAME, NOTE, SOURCE

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

EXPERIMENT = "weighbridge.deployments"
_LINE = "event."
_LONGEST_TAG = 5000
"""Characters that servers of MLflow have always taken as a tag; newer ones take more."""
_TAGS_AT_ONCE = 90
"""MLflow takes 100 in one call."""
_STATUS = {
    "failed": "FAILED",
    "kept": "FAILED",
    "rolled back": "FAILED",
    "interrupted": "KILLED",
    "aborted": "KILLED",
}


class RolloutRecord(BaseModel):
    """What is known of one rollout: its lines, and the sum of them."""

    model_config = ConfigDict(frozen=True)

    id: str
    target: str = ""
    name: str = Field("", description="Registered model.")
    version: str = ""
    previous: str = Field("", description="Version that served before; empty for none.")
    trigger: str = Field(
        "", description="What asked for it: `run`, `promote`, `rollback`, `webhook`, …"
    )
    outcome: str = Field(
        "begun", description="`begun`, until the line `end` says what became of it."
    )
    verdict: str = ""
    detail: str = ""
    evidence: dict[str, Any] = {}
    digests: dict[str, str] = {}
    began: float
    ended: float | None = None
    requests: int = Field(0, description="Answered at the target's address meanwhile.")
    failed: int = Field(0, description="Of those, by our fault.")
    cut: int = Field(0, description="Broken off when draining reached its bound.")
    events: tuple[LedgerEntry, ...] = ()

    @property
    def seconds(self) -> float | None:
        return None if self.ended is None else self.ended - self.began


def record_of(entries: Iterable[LedgerEntry]) -> RolloutRecord:
    """Return the record of one rollout from its lines: missing, doubled, and in any order."""
    lines = sorted({entry.n: entry for entry in entries}.values(), key=lambda entry: entry.n)
    facts: dict[str, Any] = {"id": lines[0].rollout, "began": lines[0].at, "events": tuple(lines)}
    for line in lines:
        if line.event == "begin":
            facts |= {
                "began": line.at,
                "name": str(line.fields.get("model", "")),
                **_strings(line.fields),
            }
            facts["digests"] = line.fields.get("digests") or {}
        if line.event == "end":
            facts |= {
                "ended": line.at,
                **{key: line.fields[key] for key in _END & line.fields.keys()},
            }
    # Draining goes on after the end: how many requests were cut is known when it is over.
    facts.setdefault(
        "cut", sum(int(line.fields.get("cut") or 0) for line in lines if line.event == "stop")
    )
    return RolloutRecord.model_validate(
        {key: value for key, value in facts.items() if value is not None}
    )


_BEGIN = ("target", "version", "previous", "trigger")
_END = frozenset({"outcome", "verdict", "detail", "evidence", "requests", "failed", "cut"})


def _strings(fields: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(fields.get(key) or "") for key in _BEGIN}


def mirror(connection: Connection, entries: Iterable[LedgerEntry]) -> None:
    """Write into MLflow the lines that it lacks; a rollout's run ends with its line `end`."""
    rollouts: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        rollouts.setdefault(entry.rollout, []).append(entry)
    for rollout, lines in rollouts.items():
        experiment_id = connection.experiment(EXPERIMENT)
        with (
            connection.doing(f"writing rollout {rollout} into the ledger"),
            connection.alone(f"rollout-{rollout}"),
        ):
            _mirror(connection, experiment_id, lines)


def _mirror(connection: Connection, experiment_id: str, lines: Sequence[LedgerEntry]) -> None:
    rollout = record_of(lines)
    run = _find(connection, experiment_id, rollout.id) or _create(
        connection, experiment_id, rollout
    )
    mirrored = _lines(run)
    missing = _missing(mirrored, lines)
    rollout = record_of([*mirrored, *missing])
    if missing:
        _write(connection, run.info.run_id, rollout, missing)
    if rollout.ended is not None and run.info.status == "RUNNING":
        status = _STATUS.get(rollout.outcome, "FINISHED")
        # With the rollout's own times: MLflow may have been away when it ended.
        connection.client.set_terminated(run.info.run_id, status, int(rollout.ended * 1000))


def _missing(mirrored: Sequence[LedgerEntry], lines: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Return the lines that are not known, each under a number that is free.

    The machine's file may begin anew in the middle of a rollout, and number its lines from 0 again:
    what drains is stopped after the end.
    """
    written, numbers = {(line.at, line.event) for line in mirrored}, {line.n for line in mirrored}
    missing = []
    for line in sorted(lines, key=lambda line: (line.at, line.n)):
        if (line.at, line.event) in written:
            continue
        if line.n in numbers:
            line = line.model_copy(update={"n": max(numbers) + 1})
        written.add((line.at, line.event))
        numbers.add(line.n)
        missing.append(line)
    return missing


def _find(connection: Connection, experiment_id: str, rollout: str) -> "MlflowRun | None":
    runs = connection.client.search_runs(
        [experiment_id],
        # Two machines may both have made one: everybody goes on with the oldest.
        f"tags.rollout = '{rollout}'",
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    return runs[0] if runs else None


def _create(connection: Connection, experiment_id: str, rollout: RolloutRecord) -> "MlflowRun":
    """Create the rollout's run. The tag that it is found by is there from its first moment, so that
    an answer that is lost does no harm.
    """
    tags = {"rollout": rollout.id, SOURCE: "weighbridge"}
    return connection.client.create_run(
        experiment_id, int(rollout.began * 1000), tags, run_name=_name(rollout)
    )


def _name(rollout: RolloutRecord) -> str:
    return f"{rollout.target}: {rollout.name} {rollout.version}"


def _write(
    connection: Connection, run_id: str, rollout: RolloutRecord, lines: Sequence[LedgerEntry]
) -> None:
    """Write the summary, then the lines: one that is there says that all before it was written."""
    from mlflow.entities import RunTag

    summary = [RunTag(key, value) for key, value in _summary(rollout).items()]
    connection.client.log_batch(run_id, metrics=list(_metrics(rollout)), tags=summary)
    for start in range(0, len(lines), _TAGS_AT_ONCE):
        batch = [
            RunTag(_key(line), _as_json(line)) for line in lines[start : start + _TAGS_AT_ONCE]
        ]
        connection.client.log_batch(run_id, tags=batch)


def _summary(rollout: RolloutRecord) -> dict[str, str]:
    """Return the tags that people search and sort by, and the page's description."""
    tags = {
        "target": rollout.target,
        "model": rollout.name,
        "version": rollout.version,
        "previous": rollout.previous,
        "trigger": rollout.trigger,
        "outcome": rollout.outcome,
        "verdict": rollout.verdict,
        "detail": rollout.detail[:_LONGEST_TAG],
        NOTE: _described(rollout),
        NAME: _name(rollout),
    }
    return {key: value for key, value in tags.items() if value}


def _metrics(rollout: RolloutRecord) -> "Iterator[Any]":
    """Return the figures of the end, at its own time: written again, they are no second point."""
    from mlflow.entities import Metric

    if rollout.ended is None:
        return
    figures = {
        "requests": rollout.requests,
        "failed": rollout.failed,
        "cut": rollout.cut,
        "seconds": rollout.seconds,
    }
    for key, value in {**rollout.evidence, **figures}.items():
        if isinstance(value, int | float) and value == value:
            yield Metric(key, float(value), int(rollout.ended * 1000), 0)


def _described(rollout: RolloutRecord) -> str:
    before = f" (was {rollout.previous})" if rollout.previous else ""
    head = (
        f"**{rollout.name} {rollout.version}**{before} on target `{rollout.target}`, "
        f"asked for by {rollout.trigger}"
    )
    rows = [
        f"| {line.at - rollout.began:.1f} | {line.event} | {_cell(line.fields)} |"
        for line in rollout.events[-40:]
    ]
    end = ": ".join(part for part in (rollout.outcome, rollout.detail[:1000]) if part)
    return f"{head}. {end}\n\n| seconds | event | |\n| ---: | --- | --- |\n" + "\n".join(rows)


def _cell(fields: Mapping[str, Any]) -> str:
    text = ", ".join(
        f"{key} {value}" for key, value in fields.items() if value not in (None, "", {}, [])
    )
    return one_line(text.replace("|", "\\|"))[:100]


def _key(line: LedgerEntry) -> str:
    return f"{_LINE}{line.n:03d}"


def _as_json(line: LedgerEntry) -> str:
    """Return a line as JSON that fits a tag: long values are shortened until it does."""
    for longest in (_LONGEST_TAG, 1000, 200, 40, 0):
        fields = _shortened(line.fields, longest) if longest else {}
        text = json.dumps({"at": line.at, "event": line.event, "fields": fields}, default=str)
        if len(text) <= _LONGEST_TAG:
            break
    return text


def _shortened(value: Any, longest: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= longest else f"{value[:longest]}…"
    if isinstance(value, Mapping):
        return {key: _shortened(item, longest) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(item, longest) for item in value[:longest]]
    return value


def history(connection: Connection, target: str, limit: int = 50) -> list[RolloutRecord]:
    """Return the rollouts of a target, newest first."""
    name = checked_name(target)
    # Not made where there is none: this only reads.
    experiment_id = connection.known_experiment(EXPERIMENT)
    if experiment_id is None:
        return []
    with connection.doing(f"reading the ledger of '{target}'"):
        runs = connection.client.search_runs(
            [experiment_id],
            f"tags.target = '{name}'",
            max_results=limit,
            order_by=["attributes.start_time DESC"],
        )
        records = [record_of(lines) for run in runs if (lines := _lines(run))]
    return sorted(records, key=lambda rollout: -rollout.began)


def _lines(run: "MlflowRun") -> list[LedgerEntry]:
    """Return the lines that a run holds."""
    tags = run.data.tags
    return [
        LedgerEntry(rollout=tags["rollout"], n=int(key.removeprefix(_LINE)), **json.loads(value))
        for key, value in tags.items()
        if key.startswith(_LINE)
    ]
