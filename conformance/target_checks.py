"""What every target is held to, a third party's too: what a rollout relies on wherever it runs.

A rollout that was interrupted is continued by doing its last effect again. So most of this is:
done twice is done once.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from weighbridge.conformance.base import CheckFailed, eventually
from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import one_line
from weighbridge.serving.targets.base import Release, Revision, Share, Target
from weighbridge.serving.targets.records import STATE, TargetLocked

LOOK_SECONDS: Final = 0.05


def check_target(
    target: Target[Any, Any],
    old: Release,
    new: Release,
    broken: Release | None = None,
    *,
    seconds: float = 600.0,
) -> list[str]:
    """Hold a target to what every target promises, and return what was checked.

    Args:
        target: with nothing running; it is left so.
        old: a release that can be served.
        new: another one.
        broken: one whose process ends, or whose files can't be had; None: that is not looked at.
        seconds: within which a release answers, or is told not to.

    Raises:
        CheckFailed: it breaks one of the promises; the message says which, and how.
        WeighbridgeError: it can't do what it is asked.
    """
    return list(_Checks(target, seconds).run(old, new, broken))


class _Checks:
    def __init__(self, target: Target[Any, Any], seconds: float) -> None:
        self._target, self._seconds = target, seconds

    def run(self, old: Release, new: Release, broken: Release | None) -> Iterator[str]:
        target = self._target
        target.check()
        _hold(target.running() == set(), f"{target.running()} run already")
        self._route([])
        yield "an address with nobody behind it"
        yield self._records()
        first = self._started(old, set())
        yield "a release starts and answers, and starting it again changes nothing"
        self._route([Share(revision=first)])
        _hold(self._soon(lambda: target.answers_clients(first)), "clients do not get its answers")
        yield "the address leads to it"
        second = self._started(new, {first.name})
        _hold(target.running() == {first.name, second.name}, "both do not run beside each other")
        _hold(target.is_healthy(first), "the first is not well while the second starts")
        yield "another one starts beside it"
        if broken is not None:
            yield self._told(broken, {first.name, second.name})
        self._shift(first, second)
        yield "traffic goes over, by the shares that the target knows"
        self._stop(first, second)
        yield "the one before ends, and ending it again changes nothing"
        self._route([])
        target.stop_named(second.name)
        target.stop_named(second.name)
        _hold(target.running() == set(), f"{target.running()} still run")
        yield "one of which only the name is known ends too"

    def _started(self, release: Release, taken: set[str]) -> Any:
        target = self._target
        _hold(target.has(release), f"{release.bento} can't be had")
        revision = target.prepare(release, taken)
        _hold(revision.name not in taken, f"{revision.name} is the name of another one")
        again = target.revision_model.model_validate(json.loads(revision.model_dump_json()))
        _hold(again == revision, f"the revision becomes {again} after JSON")
        liveness = target.start(revision)
        deadline = time.monotonic() + self._seconds
        while not target.answers(revision):
            liveness.check()
            _hold(time.monotonic() < deadline, f"{release.bento} does not answer in time")
            time.sleep(LOOK_SECONDS)
        since = target.running_since(revision)
        target.start(again).check()
        _hold(target.answers(again), "it does not answer once it was started again")
        _hold(target.running_since(revision) == since, "starting what runs starts it anew")
        _hold(target.is_healthy(revision), "it answers, and is not well")
        _hold(target.in_flight(revision) == 0, "nobody asks, and requests are under way")
        return revision

    def _told(self, broken: Release, taken: set[str]) -> str:
        target = self._target
        revision = target.prepare(broken, taken)
        try:
            liveness = target.start(revision)
            why = self._failure(liveness.check)
        except Unavailable as exc:
            why = str(exc)
        target.stop(revision)
        _hold(bool(why), f"{broken.bento} can't run, and nobody says so")
        _hold(target.running() == taken, f"{target.running()} run after that")
        return f"one that can't run is told: {one_line(why)}"

    def _failure(self, check: Callable[[], None]) -> str:
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            try:
                check()
            except Unavailable as exc:
                return str(exc)
            time.sleep(LOOK_SECONDS)
        return ""

    def _shift(self, first: Revision, second: Revision) -> None:
        target = self._target
        steps = (0, 10, 100) if target.args.splits_traffic else (0, 100)
        for step in steps:
            self._route(
                [Share(revision=second, weight=step), Share(revision=first, weight=100 - step)]
            )
        self._route(
            [Share(revision=first, weight=0, draining=True), Share(revision=second, weight=100)]
        )
        _hold(self._soon(lambda: target.answers_clients(second)), "clients do not get the second's")

    def _stop(self, first: Revision, second: Revision) -> None:
        target = self._target
        _hold(self._soon(lambda: not target.in_flight(first)), "it does not drain")
        target.stop(first)
        target.stop(first)
        self._route([Share(revision=second)])
        _hold(target.running() == {second.name}, f"{target.running()} run")
        _hold(not target.is_healthy(first), "what was stopped is well")
        _hold(target.answers(second), "the one that serves does not answer")

    def _route(self, shares: list[Share[Any]]) -> None:
        target = self._target
        for _ in range(2):
            target.route(shares)
            _hold(self._soon(lambda: target.is_routed(shares)), f"it is not routed by {shares}")

    def _records(self) -> str:
        records, document = self._target.records(), b'{"kept": "\xc3\xa9"}'
        before = records.read(STATE).content
        with records.lock(wait=True) as locked:
            locked.change(STATE, lambda _: document)
            _hold(self._target.records().read(STATE).content == document, "a record is not kept")
            _hold(records.is_locked(), "a lock that is held is not seen")
            try:
                with self._target.records().lock(wait=False):
                    raise CheckFailed("two have the lock")
            except TargetLocked:
                pass
            locked.change(STATE, lambda _: before)
        _hold(not records.is_locked(), "a lock that was given back is still held")
        return f"records are kept by {records.place}, and one has the lock"

    def _soon(self, true: Callable[[], object]) -> bool:
        return eventually(true, self._seconds, LOOK_SECONDS)


def _hold(kept: bool, wrong: str) -> None:
    if not kept:
        raise CheckFailed(wrong)
