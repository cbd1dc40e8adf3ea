"""The ledger in MLflow: every line once, whatever is brought how often and wherever it was broken
off.
"""

import random

import pytest

from weighbridge.registry import LedgerEntry, Registry
from weighbridge.registry.ledger import EXPERIMENT, record_of

BEGIN = {
    "target": "local",
    "model": "demo",
    "version": "5",
    "previous": "4",
    "trigger": "promote",
    "digests": {"bento": "x"},
}
END = {
    "outcome": "serving",
    "verdict": "pass",
    "detail": "it answered",
    "evidence": {"latency_ratio": 1.5, "why": "w"},
    "requests": 40,
    "failed": 1,
    "cut": 2,
}


def lines(rollout: str = "r1", at: float = 1000.0) -> list[LedgerEntry]:
    """A rollout from begin to end, two seconds long."""
    told = [("begin", BEGIN), ("start", {"port": 8001}), ("shift", {"share": 10}), ("end", END)]
    return [
        LedgerEntry(rollout=rollout, n=n, at=at + n * 2 / 3, event=event, fields=dict(fields))
        for n, (event, fields) in enumerate(told)
    ]


def runs(registry: Registry) -> list[tuple[str, str]]:
    """Name and status of every run of the ledger."""
    found = registry.connection.client.search_runs([registry.connection.experiment(EXPERIMENT)])
    return [(run.info.run_name, run.info.status) for run in found]


def test_a_rollout_is_read_back_as_it_was_told(registry: Registry) -> None:
    assert registry.history("local") == []
    registry.mirror(lines())
    (rollout,) = registry.history("local")
    assert rollout == record_of(lines())
    assert (rollout.name, rollout.version, rollout.previous, rollout.trigger) == (
        "demo",
        "5",
        "4",
        "promote",
    )
    assert (rollout.outcome, rollout.verdict, rollout.detail) == ("serving", "pass", "it answered")
    assert (rollout.requests, rollout.failed, rollout.cut, rollout.seconds) == (40, 1, 2, 2.0)
    assert rollout.evidence == {"latency_ratio": 1.5, "why": "w"}
    assert [line.event for line in rollout.events] == ["begin", "start", "shift", "end"]
    assert registry.history("elsewhere") == []


def test_lines_come_one_by_one_doubled_and_in_any_order_and_are_there_once(
    registry: Registry,
) -> None:
    told = lines() * 3
    random.Random(0).shuffle(told)
    for line in told:
        registry.mirror([line])
    assert registry.history("local") == [record_of(lines())]
    assert runs(registry) == [("local: demo 5", "FINISHED")]
    (run,) = registry.connection.client.search_runs([registry.connection.experiment(EXPERIMENT)])
    history = registry.connection.client.get_metric_history(run.info.run_id, "latency_ratio")
    assert [(point.value, point.timestamp) for point in history] == [(1.5, 1_002_000)]


def test_what_is_told_after_the_end_under_a_number_that_is_taken_is_a_line_of_its_own(
    registry: Registry,
) -> None:
    *others, end = lines()
    ended = end.model_copy(update={"fields": {"outcome": "serving"}})
    stop = LedgerEntry(
        rollout="r1", n=0, at=1030.0, event="stop", fields={"revision": "4", "cut": 3}
    )
    for _ in range(2):
        registry.mirror([*others, ended])
        registry.mirror([stop])
    (rollout,) = registry.history("local")
    assert [line.event for line in rollout.events] == ["begin", "start", "shift", "end", "stop"]
    assert (rollout.target, rollout.cut, rollout.ended) == ("local", 3, 1002.0)


def test_until_its_end_a_rollout_has_begun(registry: Registry) -> None:
    registry.mirror(lines()[:2])
    (rollout,) = registry.history("local")
    assert (rollout.outcome, rollout.ended, rollout.requests) == ("begun", None, 0)
    assert runs(registry) == [("local: demo 5", "RUNNING")]
    registry.mirror(lines())
    assert registry.history("local")[0].outcome == "serving"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("serving", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")],
)
def test_mlflows_page_says_how_it_ended_and_why(
    registry: Registry, outcome: str, status: str
) -> None:
    *others, end = lines()
    registry.mirror(
        [*others, end.model_copy(update={"fields": {"outcome": outcome, "detail": "since | that"}})]
    )
    (run,) = registry.connection.client.search_runs([registry.connection.experiment(EXPERIMENT)])
    assert (run.info.status, run.data.tags["outcome"], run.info.end_time) == (
        status,
        outcome,
        1_002_000,
    )
    page = run.data.tags["mlflow.note.content"]
    assert "**demo 5** (was 4) on target `local`, asked for by promote" in page
    assert "| 0.7 | start | port 8001 |" in page
    assert "since \\| that" in page


def test_rollouts_are_listed_newest_first_and_no_more_than_asked_for(registry: Registry) -> None:
    registry.mirror([*lines("a", 1000), *lines("c", 3000), *lines("b", 2000)])
    assert [rollout.id for rollout in registry.history("local")] == ["c", "b", "a"]
    assert [rollout.id for rollout in registry.history("local", limit=2)] == ["c", "b"]


@pytest.mark.parametrize("call", ["create_run", "log_batch", "set_terminated"])
@pytest.mark.parametrize("nth", [1, 2])
def test_done_but_told_otherwise_the_next_time_completes_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    class Lost(BaseException):
        pass

    real, seen = getattr(registry.connection.client, call), []

    def lose(*args: object, **kwargs: object) -> object:
        answer = real(*args, **kwargs)
        seen.append(call)
        if len(seen) == nth:
            raise Lost
        return answer

    monkeypatch.setattr(registry.connection.client, call, lose)
    for _ in range(3):
        try:
            registry.mirror(lines())
        except Lost:
            continue
    assert registry.history("local") == [record_of(lines())]
    assert [status for _, status in runs(registry)] == ["FINISHED"]


def test_a_killed_write_of_the_lines_is_completed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(registry.connection.client, "log_batch", die)
        with pytest.raises(Killed):
            registry.mirror(lines())
    registry.mirror(lines())
    assert registry.history("local") == [record_of(lines())]
    assert len(runs(registry)) == 1


def test_more_than_mlflow_takes_is_shortened_and_more_lines_than_it_takes_at_once_are_all_there(
    registry: Registry,
) -> None:
    long = {"detail": "x" * 20_000, "evidence": {"errors": 0.5}, "outcome": "failed"}
    steps = [
        LedgerEntry(rollout="r", n=n, at=1000.0 + n, event="shift", fields={"log": "y" * 9000})
        for n in range(1, 250)
    ]
    begin = LedgerEntry(rollout="r", n=0, at=1000.0, event="begin", fields=BEGIN)
    registry.mirror(
        [begin, *steps, LedgerEntry(rollout="r", n=250, at=1300.0, event="end", fields=long)]
    )
    (rollout,) = registry.history("local")
    assert len(rollout.events) == 251
    assert rollout.outcome == "failed"
    assert 900 < len(rollout.detail) < 5000
    assert rollout.evidence == {"errors": 0.5}
