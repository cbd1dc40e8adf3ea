"""The ledger's first copy: a file beside the target, written before each effect, that needs no
MLflow.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from weighbridge.core.files import replace_text
from weighbridge.registry.ledger_entries import LedgerEntry


class Outbox:
    """Lines of a target's rollouts that MLflow may not have yet."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ledger.jsonl"
        self._mark = folder / "ledger.mirrored"

    def write(self, rollout: str, event: str, **fields: Any) -> None:
        """Add a line; it is on the disk when this returns."""
        number = sum(entry.rollout == rollout for entry in self.entries())
        entry = LedgerEntry(rollout=rollout, n=number, at=time.time(), event=event, fields=fields)
        # A line that a crash cut off must not swallow this one.
        before = b"" if not (known := self._bytes()) or known.endswith(b"\n") else b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as stream:
            stream.write(before + entry.model_dump_json().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def entries(self) -> list[LedgerEntry]:
        """Every line of the file; one that a crash cut off is not there."""
        found = []
        for line in self._bytes().split(b"\n"):
            try:
                found.append(LedgerEntry.model_validate(json.loads(line)))
            except ValueError:
                continue
        return found

    def ended(self, rollout: str) -> bool:
        """Whether it is written how a rollout ended."""
        return any((entry.rollout, entry.event) == (rollout, "end") for entry in self.entries())

    def unended(self) -> list[str]:
        """Rollouts of which it is written that they began, and not how they ended."""
        return [
            entry.rollout
            for entry in self.entries()
            if entry.event == "begin" and not self.ended(entry.rollout)
        ]

    def unmirrored(self) -> list[LedgerEntry]:
        """What MLflow has to be told."""
        return self.entries()[self._mirrored() :]

    def mirrored(self, count: int, *, keep: bool = False) -> None:
        """MLflow has been told `count` more lines; where that is all and every rollout has ended,
        the file starts anew.

        With `keep` it does not: whoever settles what is under way must still see how far it came.
        """
        total = self._mirrored() + count
        if keep or total < len(self.entries()) or self.unended():
            replace_text(self._mark, str(total))
        else:
            # In this order: lines that MLflow is told again do no harm, lines that it is never told
            # would.
            self._mark.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)

    def _bytes(self) -> bytes:
        return self._path.read_bytes() if self._path.exists() else b""

    def _mirrored(self) -> int:
        return int(self._mark.read_text()) if self._mark.exists() else 0
