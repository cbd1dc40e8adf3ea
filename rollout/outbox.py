"""The outbox of the ledger: entries among a target's records, on their way to MLflow.

An entry is written before the effect that it tells of, so a rollout needs no MLflow to go on.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from weighbridge.registry.ledger_entries import LedgerEntry
from weighbridge.serving.targets.base import Release, Revision
from weighbridge.serving.targets.records import LEDGER, MIRRORED, TargetRecords

COUNTS = ("requests", "failed")
"""Figures of a rollout that are columns of their own in the ledger."""


class Outbox:
    """Entries on a target's rollouts that MLflow may not have yet."""

    def __init__(self, records: TargetRecords) -> None:
        # A glance is enough: who adds to the outbox has the lock, and sees what it wrote itself.
        self._records = records

    def write(self, rollout: str, event: str, **fields: Any) -> None:
        """Add an entry; it outlives a loss of power when this returns.

        Raises:
            Unavailable: it can't be written down, as where the disk is full.
        """

        def line(content: bytes) -> bytes:
            number = sum(entry.rollout == rollout for entry in _entries(content))
            entry = LedgerEntry(
                rollout=rollout, n=number, at=time.time(), event=event, fields=fields
            )
            return entry.model_dump_json().encode()

        self._records.append(LEDGER, line)

    def write_begin(
        self, rollout: str, target: str, release: Release, previous: Revision | None, trigger: str
    ) -> None:
        """Add that a release is about to be tried at a target, in place of the previous one.

        Raises:
            Unavailable: it can't be written down, as where the disk is full.
        """
        self.write(
            rollout,
            "begin",
            target=target,
            model=release.name,
            version=release.version,
            previous=previous.release.version if previous else "",
            trigger=trigger,
            digests={"bento": release.digest},
            bento=release.bento,
        )

    def write_end(
        self, rollout: str, outcome: str, verdict: str, detail: str, figures: Mapping[str, float]
    ) -> None:
        """Add how a rollout ended, unless that was written before a crash.

        Raises:
            Unavailable: it can't be written down, as where the disk is full.
        """
        if self.ended(rollout):
            return
        counts = {name: int(figures.get(name, 0)) for name in COUNTS}
        evidence = {name: round(value, 4) for name, value in figures.items() if name not in COUNTS}
        self.write(
            rollout,
            "end",
            outcome=outcome,
            verdict=verdict,
            detail=detail,
            evidence=evidence,
            **counts,
        )

    def entries(self) -> list[LedgerEntry]:
        """Return every entry, but not one that a crash cut off."""
        return _entries(self._records.glance(LEDGER))

    def ended(self, rollout: str) -> bool:
        """Whether it is written how a rollout ended."""
        return any((entry.rollout, entry.event) == (rollout, "end") for entry in self.entries())

    def unended(self) -> list[str]:
        """Return the rollouts of which it is written that they began, and not how they ended."""
        return _unended(self.entries())

    def unmirrored(self) -> list[LedgerEntry]:
        """Return what MLflow has to be told. Raises Unavailable, LockLost."""
        # As they are now, by a place that answers: who has lost the lock tells nothing any more.
        told = int(self._records.read(MIRRORED).content or 0)
        return self.entries()[told:]

    def mirrored(self, count: int, *, keep: bool = False) -> None:
        """Note that MLflow has been told `count` more entries.

        The outbox starts anew where that is all and every rollout has ended.

        Args:
            count: how many of `unmirrored`, from its beginning.
            keep: whether the entries stay: whoever resolves an interrupted rollout must still see
                how far it came.

        Raises:
            Unavailable: it can't be written down; MLflow is told these entries again.
        """
        total, entries = int(self._records.glance(MIRRORED) or 0) + count, self.entries()
        if keep or total < len(entries) or _unended(entries):
            self._records.change(MIRRORED, lambda _: str(total).encode())
        else:
            # In this order: entries that MLflow is told again do no harm, entries that it is never
            # told would.
            self._records.change(MIRRORED, lambda _: b"")
            self._records.change(LEDGER, lambda _: b"")


def _entries(content: bytes) -> list[LedgerEntry]:
    entries = []
    # Not splitlines: texts may hold other characters that it takes for the end of a line.
    for line in content.split(b"\n"):
        try:
            entries.append(LedgerEntry.model_validate_json(line))
        except ValueError:
            continue
    return entries


def _unended(entries: Sequence[LedgerEntry]) -> list[str]:
    ended = {entry.rollout for entry in entries if entry.event == "end"}
    begun = (entry.rollout for entry in entries if entry.event == "begin")
    return [rollout for rollout in begun if rollout not in ended]
