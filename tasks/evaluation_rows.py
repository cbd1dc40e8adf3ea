"""The rows that models answer for their scores: named, and where there is a limit a sample."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from weighbridge.core.artifact import Artifact
from weighbridge.tasks.data import Row, Split, read_rows


def evaluation_rows(data: Artifact, split: Split, limit: int | None = None) -> list[Row]:
    """Return the rows of a split, each with an id: all, or a sample of `limit` of them.

    The sample follows from the rows alone, so that every model answers the same ones.
    """
    return sample(named(read_rows(data, split)), limit)


def named(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with ids: their own, or else a digest of what they ask and answer, with a
    count where equal rows repeat.
    """
    seen: Counter[str] = Counter()
    with_ids = []
    for row in rows:
        name = row.id or _digest(row.model_dump_json(include={"prompt", "completion"}))
        seen[name] += 1
        number = f"-{seen[name]}" if seen[name] > 1 else ""
        with_ids.append(row.model_copy(update={"id": name + number}))
    return with_ids


def sample(rows: list[Row], limit: int | None) -> list[Row]:
    """Return `limit` of the rows, drawn by their ids, in their order; each cluster and each
    slice gives as large a part of its rows as the others.
    """
    if limit is None or limit >= len(rows):
        return rows
    clusters: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        clusters.setdefault(_group(row), []).append(place)
    position = {}
    for name, places in clusters.items():
        # Systematic sampling with a random start: every row has the same chance to be drawn, and
        # the rows of a cluster lie evenly between 0 and 1.
        start = _uniform(f"cluster {name}")
        drawn = sorted(places, key=lambda place: _digest(rows[place].id))
        for rank, place in enumerate(drawn):
            position[place] = (rank + start) / len(places)
    taken = sorted(position, key=lambda place: (position[place], rows[place].id))[:limit]
    return [rows[place] for place in sorted(taken)]


def _group(row: Row) -> str:
    """Return what a row shares with those that give as large a part of a sample as it does."""
    if not row.slice:
        return row.cluster or f"row {row.id}"
    return f"{row.cluster} in slice {row.slice}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _uniform(text: str) -> float:
    return int(_digest(text), 16) / 16**16
