"""What the test rows of a recipe can show, said before anything is measured."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Final

from weighbridge.configs.recipe import Recipe
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.repeat import Repeated
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.objective import Objective
from weighbridge.tasks.selection.proving_rows import is_right_or_wrong
from weighbridge.tasks.statistics.paired import spread
from weighbridge.tasks.statistics.repeats import USUAL_SPREAD, log_spread, resolution
from weighbridge.tasks.statistics.sample_size import POWER, rows_for, smallest_gain, smallest_margin
from weighbridge.tasks.weigh import Weighed

USUAL_DISCORDANCE: Final = 0.1
"""Share of rows that one of two models alone answers rightly, where nothing was weighed yet."""


def lines(rows: int, recipe: Recipe, data: str, workspace: Workspace) -> list[str]:
    """Return in a line or two what so many test rows can show; none where nobody can tell.

    The spread of the rows' differences is that of the last weighing on `data`, a digest; empty:
    they are not here yet. Before one, it is known of right and wrong answers alone.
    """
    rows = min(rows, recipe.evaluate.limit or rows)
    label = recipe.select.metric
    of_right_and_wrong = is_right_or_wrong(label, recipe.evaluate)
    weighed = workspace.stages.newest("weigh", Weighed, data) if data else None
    seen = _spread_seen(weighed.measurements if weighed else [], label)
    if not rows or (seen is None and not of_right_and_wrong):
        return []
    if seen is None:
        whence, deviation = "as is usual", math.sqrt(USUAL_DISCORDANCE)
    else:
        # One row that differs may come yet where none did.
        whence, deviation = "as in the last weighing", max(seen, 1 / math.sqrt(rows))
    differ = (
        f"one of two models alone is right in {100 * deviation**2:.3g} % of rows"
        if of_right_and_wrong
        else f"the rows' differences spread by {deviation:.2g}"
    )
    told = (
        f"{rows:,} test rows show that {label} is not worse by "
        f"{smallest_margin(rows, deviation):.2g}, in {100 * POWER:.0f} % of cases where it is "
        f"equal ({differ}, {whence}){_gain(rows, deviation, of_right_and_wrong)}"
    )
    return [told, *_of_limits(rows, deviation, recipe.select)]


def _gain(rows: int, deviation: float, of_right_and_wrong: bool) -> str:
    """Return which gain is shown as often, to be put after a sentence."""
    gain = (
        smallest_gain(rows, min(1.0, deviation**2))
        if of_right_and_wrong
        else smallest_margin(rows, deviation)
    )
    if gain is None:
        return "; that one is better they show in fewer cases, however large the gain"
    return f"; that one is better, as often where it is by {gain:.2g}"


def _of_limits(rows: int, deviation: float, args: SelectArgs) -> list[str]:
    """Return in a line which limits take more rows than there are."""
    limits = {"select.margin": args.margin, "select.max_loss": args.max_loss}
    takes = {name: rows_for(limit, deviation) for name, limit in limits.items() if limit}
    more = [
        f"{name} {limits[name]:.3g} takes {count:,} test rows"
        for name, count in takes.items()
        if count > rows
    ]
    return ["; ".join(more)] if more else []


def _spread_seen(measurements: Sequence[Measurement], label: str) -> float | None:
    """Return the largest spread between two candidates' rows; None where there are no two."""
    scores = [
        score
        for measurement in measurements
        if (score := measurement.test_scores.get(label) or measurement.scores.get(label))
    ]
    spreads = [spread(first, second) for first, second in combinations(scores, 2)]
    return max((known for known in spreads if known is not None), default=None)


def of_speed(recipe: Recipe, data: str, workspace: Workspace) -> list[str]:
    """Return in a line what the repeats can show of speeds; none where no speed decides.

    The spread is that of the last repeats on `data`, a digest, else the usual one.
    """
    weigh, objective = recipe.weigh, Objective(recipe.select)
    if not (objective.is_speed and weigh.repeats):
        return []
    repeated = workspace.stages.newest("repeat", Repeated, data) if data else None
    seen = _spread_of_repeats(repeated, objective) if repeated else None
    whence = "as is usual" if seen is None else "as in the last repeats"
    deviation = USUAL_SPREAD * math.sqrt(2) if seen is None else seen
    most, least = max(weigh.repeats, weigh.max_repeats), recipe.select.min_improvement
    truth = resolution(deviation, weigh.repeats, most, least)
    return [
        f"{most} repeats show that one is {least:.0%} faster than the champion, in "
        f"{100 * POWER:.0f} % of cases where it is {truth:.0%} faster (the ratio of two runs "
        f"spreads by {deviation:.1%}, {whence})"
    ]


def _spread_of_repeats(repeated: Repeated, objective: Objective) -> float | None:
    """Return the largest spread of two candidates' ratios; None where none were repeated."""
    measurements = [*repeated.measurements, *([repeated.champion] if repeated.champion else [])]
    runs = [objective.runs(one) for one in measurements if one.repeats]
    spreads = [log_spread(*pair) for pair in combinations(runs, 2)]
    return max((known for known in spreads if known is not None), default=None)
