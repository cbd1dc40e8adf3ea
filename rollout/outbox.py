"""The outbox of the ledger: entries among a target's records, on their way to MLflow.

An entry is written before the effect that it tells of, so a rollout needs no MLflow to go on. Where
the records lie may have room for a few hundred rollouts only, and MLflow may be away for longer:
the outbox is shortened then, and says so, rather than keep anybody from deploying.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from weighbridge.registry.ledger_entries import LedgerEntry
from weighbridge.serving.targets.base import Release, Revision
from weighbridge.serving.targets.records import LEDGER, MIRRORED, TargetRecords

logger = logging.getLogger(__name__)

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
            # Not their count: some may have been left out.
            numbers = (entry.n for entry in _entries(content, rollout))
            entry = LedgerEntry(
                rollout=rollout,
                n=max(numbers, default=-1) + 1,
                at=time.time(),
                event=event,
                fields=fields,
            )
            return entry.model_dump_json().encode()

        self._make_room()
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
        content = self._records.glance(LEDGER)
        return any(entry.event == "end" for entry in _entries(content, rollout))

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

    def _make_room(self) -> None:
        """Leave out what the ledger can best do without, where the outbox has become too long."""
        most = self._records.OUTBOX_BYTES
        if most is None or len(content := self._records.glance(LEDGER)) < most:
            return
        entries, told = _entries(content), int(self._records.glance(MIRRORED) or 0)
        # Well below, so that not every entry from now on has it shortened again.
        kept = _shortened(entries, told, most * 3 // 4)
        if len(kept) == len(entries):
            # All are needed: MLflow is not told them again for nothing.
            return
        _warn(entries[told:], kept, self._records.place)
        # In this order, as above.
        self._records.change(MIRRORED, lambda _: b"")
        self._records.change(LEDGER, lambda _: b"".join(map(_as_line, kept)))


def _shortened(entries: Sequence[LedgerEntry], told: int, most: int) -> list[LedgerEntry]:
    """Return the entries without those that are needed least, until they fit if they can.

    First goes what MLflow has been told, then the steps of rollouts between their begin and their
    end, then whole rollouts, the oldest first. One that goes on, and the newest one, are left
    whole: somebody may have to resolve them.

    Args:
        entries: all of them.
        told: how many from the beginning MLflow has.
        most: bytes.
    """
    by_rollout: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        by_rollout.setdefault(entry.rollout, []).append(entry)
    needed_whole = {*_unended(entries), entries[-1].rollout}
    settled = [lines for rollout, lines in by_rollout.items() if rollout not in needed_whole]
    go_together = [
        *([entry] for entry in entries[:told] if entry.rollout not in needed_whole),
        *([entry] for entry in entries if entry.event == "waiting"),
        *([entry] for lines in settled for entry in lines if _is_step(entry)),
        *settled,
    ]
    size, left_out = sum(len(_as_line(entry)) for entry in entries), set[int]()
    for group in go_together:
        if size <= most:
            break
        going = [entry for entry in group if id(entry) not in left_out]
        size -= sum(len(_as_line(entry)) for entry in going)
        left_out |= {id(entry) for entry in going}
    return [entry for entry in entries if id(entry) not in left_out]


def _is_step(entry: LedgerEntry) -> bool:
    """Whether a rollout's outcome and figures can be told without this entry."""
    return entry.event not in ("begin", "end") and not entry.fields.get("cut")


def _warn(untold: Sequence[LedgerEntry], kept: Sequence[LedgerEntry], place: str) -> None:
    """Say what MLflow will never be told."""
    still_there = {id(entry) for entry in kept}
    lost = {entry.rollout for entry in untold if id(entry) not in still_there}
    gone = lost - {entry.rollout for entry in kept}
    if lost:
        logger.warning(
            "%s: MLflow has been away for so long that there is no more room for its ledger: it "
            "will lack the steps of %d rollouts, and %d others altogether",
            place,
            len(lost) - len(gone),
            len(gone),
        )


def _as_line(entry: LedgerEntry) -> bytes:
    return entry.model_dump_json().encode() + b"\n"


def _entries(content: bytes, rollout: str = "") -> list[LedgerEntry]:
    """Return the entries, or those of one rollout."""
    entries = []
    # Not splitlines: texts may hold other characters that it takes for the end of a line.
    for line in content.split(b"\n"):
        # There may be thousands: most need not be read for one rollout.
        if rollout.encode() not in line:
            continue
        try:
            entry = LedgerEntry.model_validate_json(line)
        except ValueError:
            continue
        if rollout in ("", entry.rollout):
            entries.append(entry)
    return entries


def _unended(entries: Sequence[LedgerEntry]) -> list[str]:
    ended = {entry.rollout for entry in entries if entry.event == "end"}
    begun = (entry.rollout for entry in entries if entry.event == "begin")
    return [rollout for rollout in begun if rollout not in ended]
