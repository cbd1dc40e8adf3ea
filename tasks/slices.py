"""Scores by slice: of the rows of one kind, by the column that `data.slice` names."""

from collections.abc import Mapping, Sequence

from weighbridge.tasks.data import Row
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.metrics.intervals import with_interval
from weighbridge.tasks.statistics.rows import figure_of, follows_from_rows, summands


def slices_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return the slice of each row by its id; nothing where rows have none."""
    return {row.id: row.slice for row in rows if row.slice}


def by_slice(score: Score, slices: Mapping[str, str]) -> dict[str, Score]:
    """Return the score of each slice by itself, in the order in which the slices come.

    There is none where a row's part in the figure is not known.

    Args:
        score: over rows with ids.
        slices: the slice of a row by its id.
    """
    if not score.ids or not follows_from_rows(score):
        return {}
    places: dict[str, list[int]] = {}
    for place, name in enumerate(score.ids):
        if name in slices:
            places.setdefault(slices[name], []).append(place)
    return {name: _of(score, rows) for name, rows in places.items()}


def _of(score: Score, places: Sequence[int]) -> Score:
    kept = {
        name: [values[place] for place in places]
        for name in ("per_example", "ids", "clusters", "weights", "statistics")
        if (values := getattr(score, name))
    }
    part = score.model_copy(update=kept)
    value = float(figure_of(part).value(summands(part).sum(axis=0)))
    return with_interval(part.model_copy(update={"value": value, "low": value, "high": value}))
