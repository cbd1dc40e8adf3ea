"""Is one candidate faster than another? Runs repeated in blocks, looked at as planned.

Both run in every block, so that what the machine does meanwhile is shared: what counts is the log
of the ratio of their figures, block by block, with Student's interval. Looking more than once is
paid for: the error is spent over the planned looks by the function of Pocock type of Lan and DeMets
(Discrete sequential boundaries for clinical trials, Biometrika 70, 1983), whose boundaries come
from the integration of Armitage, McPherson and Rowe (JRSS A 132, 1969). Each boundary's level is
taken to Student's distribution of the blocks so far (Jennison and Turnbull, Group Sequential
Methods, 2000, chapter 3: significance level approach), which errs in 5.5 instead of 5 % with so few
blocks: one factor to all levels, found by simulation, makes up for it. So the intervals of all
looks hold together, and one may stop at any of them.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist, fmean, stdev
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.tasks.statistics.verdict import Claim, Verdict

TIE: Final = 0.01
"""Two candidates whose ratio lies within 1 % of one are as fast as each other."""
DRIFT: Final = 0.03
"""Part by which a machine may have become faster or slower during a weighing."""
EXCLUDED_DRIFT: Final = 0.1
"""A machine that became faster or slower by this is recognised in 95 % of cases, however noisy its
runs are: where these do not exclude it, nothing is known of the machine.
"""
USUAL_SPREAD: Final = 0.07
"""Spread of the logs of single runs of one candidate, of twelve runs on a quiet machine."""
MOST_NEEDED: Final = 10_000
"""More blocks than these are nothing to be told: nobody will run them."""
_LOOKS_COST: Final = 1.2
_GRID: Final = 801
_DRAWS: Final = 100_000
"""They leave the factor, and so the error, uncertain by a fiftieth of itself."""


def planned_looks(fewest: int, most: int) -> tuple[int, ...]:
    """Return the numbers of blocks after which is looked: four at most, evenly apart."""
    if most <= fewest:
        return (fewest,)
    steps = min(3, most - fewest)
    return tuple(fewest + round((most - fewest) * step / steps) for step in range(steps + 1))


def spent(alpha: float, information: float) -> float:
    """Return how much of an error may be used up by a part of the blocks."""
    return alpha * math.log(1 + (math.e - 1) * information)


def boundaries(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """Return for each look the normal score that a true difference of nothing exceeds there or
    before in as many cases as were to be spent until then; one-sided.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.stats import norm

    times = [look / looks[-1] for look in looks]
    bounds = [float(norm.isf(spent(alpha, times[0])))]
    # The sum of the scores so far, as a Brownian motion at these times, where no look ended it.
    sums = np.linspace(-8 * math.sqrt(times[0]), bounds[0] * math.sqrt(times[0]), _GRID)
    density = norm.pdf(sums, scale=math.sqrt(times[0]))
    for before, now in itertools.pairwise(times):
        step, scale = math.sqrt(now - before), math.sqrt(now)
        due = spent(alpha, now) - spent(alpha, before)
        weights = density * (sums[1] - sums[0])
        weights[[0, -1]] /= 2

        def excess(
            bound: float,
            sums: Any = sums,
            weights: Any = weights,
            step: float = step,
            scale: float = scale,
            due: float = due,
        ) -> float:
            return float(weights @ norm.sf((bound * scale - sums) / step)) - due

        bounds.append(float(brentq(excess, 0.0, 8.0)))
        after = np.linspace(-8 * scale, bounds[-1] * scale, _GRID)
        density = norm.pdf((after[:, None] - sums[None, :]) / step) @ weights / step
        sums = after
    return tuple(bounds)


@lru_cache(maxsize=64)
def levels(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """Return the one-sided level of each planned look: together they err in `alpha` of cases."""
    if len(looks) == 1:
        return (alpha,)
    import numpy as np
    from scipy.special import stdtr
    from scipy.stats import norm

    nominal = norm.sf(boundaries(looks, alpha))
    blocks = np.random.default_rng(0).standard_normal((_DRAWS, looks[-1]))
    # How far below its level the smallest of a draw's p-values is; each draw serves both sides.
    below = np.full((2, _DRAWS), np.inf)
    for look, level in zip(looks, nominal, strict=True):
        part = blocks[:, :look]
        score = part.mean(axis=1) / part.std(axis=1, ddof=1) * math.sqrt(look)
        p = stdtr(look - 1, score)
        np.minimum(below, np.stack([p, 1 - p]) / level, out=below)
    return tuple(float(level) for level in nominal * np.quantile(below, alpha))


class _Interval(BaseModel):
    """Mean of the logs of the ratios, with its interval at the last look that was reached."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float
    high: float
    spread: float
    """Standard deviation of one block's log."""
    blocks: int


def _interval(
    before: Sequence[float], after: Sequence[float], alpha: float, looks: tuple[int, ...]
) -> _Interval | str:
    """Return the interval, or why there is none."""
    if len(before) != len(after):
        raise ValueError("runs of two candidates are paired by block: there must be as many")
    reached = [look for look in looks if look <= len(before)]
    if not reached:
        return f"{len(before)} of {looks[0]} repeats were run"
    # What was run beyond a planned look counts at the next one.
    blocks = reached[-1]
    pairs = list(zip(before[:blocks], after[:blocks], strict=True))
    if any(not (math.isfinite(value) and value > 0) for pair in pairs for value in pair):
        return "a repeat has no figure"
    from scipy.special import stdtrit

    logs = [math.log(new / old) for old, new in pairs]
    mean, spread = fmean(logs), stdev(logs)
    level = levels(looks, alpha / 2)[len(reached) - 1]
    half = float(-stdtrit(blocks - 1, level)) * spread / math.sqrt(blocks)
    return _Interval(mean=mean, low=mean - half, high=mean + half, spread=spread, blocks=blocks)


def mean_interval(runs: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the geometric mean of one candidate's runs with Student's 95 % interval of its log;
    None of fewer than three, or where one is not above 0.

    Two candidates are compared by the ratios within their blocks, and not by these.
    """
    if len(runs) < 3 or not all(math.isfinite(run) and run > 0 for run in runs):
        return None
    logs = [math.log(run) for run in runs]
    half = _student(0.975, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    middle = fmean(logs)
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def faster(
    champion: Sequence[float],
    challenger: Sequence[float],
    min_improvement: float,
    alpha: float = 0.05,
    looks: tuple[int, ...] = (5,),
) -> Claim:
    """Return whether the challenger's figure is greater by `min_improvement`, a share.

    Args:
        champion: one figure per block, of which more is better (of times, give the inverse).
        challenger: its figures of the same blocks.
        min_improvement: what the lower end of the interval has to reach.
        alpha: two-sided error of all looks together.
        looks: numbers of blocks after which it was planned to look; what is beyond the last one
            that was reached does not count yet.
    """
    return _claim(
        _interval(champion, challenger, alpha, looks),
        lambda found: (
            "shown"
            # An equal one is not faster, whatever is asked for.
            if found.low >= math.log1p(min_improvement) and found.low > 0
            else "refuted"
            if found.high < math.log1p(min_improvement)
            else "undecided"
        ),
        f"at least {min_improvement:.1%} faster" if min_improvement else "faster",
        lambda found: _needed(
            abs(found.mean - math.log1p(min_improvement)), found.spread, levels(looks, alpha / 2)
        ),
    )


def tied(
    one: Sequence[float],
    other: Sequence[float],
    alpha: float = 0.05,
    looks: tuple[int, ...] = (5,),
    within: float = TIE,
) -> Claim:
    """Return whether two candidates are as fast as each other: the whole interval within 1 %."""
    edge = math.log1p(within)
    return _claim(
        _interval(one, other, alpha, looks),
        lambda found: (
            "shown"
            if -edge <= found.low and found.high <= edge
            else "refuted"
            if found.low > edge or found.high < -edge
            else "undecided"
        ),
        f"as fast within {within:.0%}",
        lambda found: _needed(abs(edge - abs(found.mean)), found.spread, levels(looks, alpha / 2)),
    )


def _claim(
    found: _Interval | str,
    judge: Callable[[_Interval], Verdict],
    claimed: str,
    needed: Callable[[_Interval], int | None],
) -> Claim:
    if isinstance(found, str):
        return Claim(
            verdict="undecided",
            estimate=math.nan,
            low=-math.inf,
            high=math.inf,
            why=f"{found}: nothing is known of whether it is {claimed}",
            needed=None,
        )
    verdict = judge(found)
    estimate, low, high = (math.expm1(log) for log in (found.mean, found.low, found.high))
    return Claim(
        verdict=verdict,
        estimate=estimate,
        low=low,
        high=high,
        why=f"{claimed} is {verdict}: {estimate:+.1%} ({low:+.1%} to {high:+.1%}) in "
        f"{found.blocks} repeats",
        needed=needed(found) if verdict == "undecided" else None,
    )


def _needed(gap: float, spread: float, planned: tuple[float, ...]) -> int | None:
    """Return how many blocks make the interval as narrow as the gap; None where too many would.

    At the level of the last planned look.
    """
    from scipy.special import stdtrit

    if spread <= 0 or gap <= spread * 1.96 / math.sqrt(MOST_NEEDED):
        return None
    blocks = 3
    while float(-stdtrit(blocks - 1, planned[-1])) * spread / math.sqrt(blocks) > gap:
        blocks += max(1, blocks // 50)
    return blocks


def resolution(
    spread: float, fewest: int, most: int, min_improvement: float, alpha: float = 0.05
) -> float:
    """Return how much faster, a share, one has to be to be shown faster by `min_improvement` four
    times in five.

    Args:
        spread: standard deviation of the log of one block's ratio.
        fewest: blocks at the first look.
        most: blocks at the last one.
        min_improvement: what is to be shown, a share.
        alpha: two-sided error of all looks together.
    """
    # Looking four times takes 1.2 times the blocks (Jennison and Turnbull, table 2.2).
    blocks = most if most <= fewest else max(fewest, most / _LOOKS_COST)
    certain, power = (_student(level, blocks - 1) for level in (1 - alpha / 2, 0.8))
    return math.exp((certain + power) * spread / math.sqrt(blocks)) * (1 + min_improvement) - 1


def _student(level: float, freedom: float) -> float:
    """Return a quantile of Student's distribution, by the expansion of Abramowitz and Stegun
    (26.7.5): a plan must not wait for SciPy.
    """
    z = NormalDist().inv_cdf(level)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**number for number, term in enumerate(terms, start=1))


def log_spread(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the standard deviation of the log of one block's ratio; None where it is not known."""
    pairs = list(zip(one, other, strict=True))
    if len(pairs) < 2 or not all(figure > 0 for pair in pairs for figure in pair):
        return None
    return stdev(math.log(second / first) for first, second in pairs)


class Drift(BaseModel):
    """What one candidate, measured under two labels from start to end, says of the machine."""

    model_config = ConfigDict(frozen=True)

    change: float | None = Field(
        description="Of the machine's speed, from the first blocks to the last: a share; None: "
        "not known."
    )
    differs: Verdict = Field(description="On the claim that the candidate differs from itself.")
    steady: bool = Field(description="Whether differences in speed may be believed.")
    why: str = Field(description="One sentence.")

    @property
    def is_open(self) -> bool:
        """Whether runs are too noisy to tell if the machine held its speed: more blocks may."""
        is_small = self.change is not None and abs(self.change) <= DRIFT
        return is_small and not self.steady and self.differs != "shown"


def drift(
    one: Sequence[float],
    again: Sequence[float],
    others: Sequence[Sequence[float]] = (),
    alpha: float = 0.05,
    looks: tuple[int, ...] = (5,),
) -> Drift:
    """Return whether the machine held its speed from the first blocks to the last.

    It did where the change that was seen is at most `DRIFT`, and one of `EXCLUDED_DRIFT` is
    excluded both ways: two one-sided tests at 5 % (Schuirmann, A comparison of the two one-sided
    tests procedure and the power approach, 1987). The second half of that matters where runs are
    noisy: by their noise alone a great change looks small now and then.

    Args:
        one: figures of one candidate, block by block.
        again: its figures under a second label, of the same blocks.
        others: of other candidates that ran in these blocks: each is compared with itself.
        alpha: two-sided error of all looks together, where nothing but noise is between the labels.
        looks: numbers of blocks after which it was planned to look.
    """
    labels = _claim(
        _interval(one, again, alpha, looks),
        lambda found: "shown" if found.low > 0 or found.high < 0 else "undecided",
        "different under two labels",
        lambda _: None,
    )
    if math.isnan(labels.estimate):
        return Drift(change=None, differs="undecided", steady=False, why=labels.why)
    log, margin = _rise((one, again, *others), len(one) // 2)
    change, low, high = (math.expm1(end) for end in (log, log - margin, log + margin))
    is_known = low > -EXCLUDED_DRIFT and high < EXCLUDED_DRIFT
    steady = labels.verdict != "shown" and abs(change) <= DRIFT and is_known
    if labels.verdict == "shown":
        why = f"one candidate differs from itself: {labels.why}"
    elif steady:
        why = f"the machine held its speed ({change:+.1%})"
    elif math.isnan(change):
        why = "a repeat has no figure: whether the machine held its speed is not known"
    elif abs(change) <= DRIFT:
        seen = f"{change:+.1%} ({low:+.1%} to {high:+.1%})"
        why = (
            f"it is not known whether the machine held its speed: {seen}, which does not exclude "
            f"a change of {EXCLUDED_DRIFT:.0%}"
        )
    else:
        became = "faster" if change > 0 else "slower"
        why = f"the machine became {abs(change):.1%} {became} meanwhile (at most {DRIFT:.0%})"
    known = None if math.isnan(change) else change
    return Drift(change=known, differs=labels.verdict, steady=steady, why=why)


def _rise(labels: Sequence[Sequence[float]], half: int) -> tuple[float, float]:
    """Return by how much the logs of the last figures are above those of the first ones, and how
    far that may be off to either side with 95 % confidence; NaN where a figure is not above 0.

    The log of a run is taken as its label's, plus its half's, plus noise (two-way analysis of
    variance without interaction).

    Args:
        labels: figures of each label, block by block.
        half: number of blocks at the beginning, and at the end.
    """
    from scipy.special import stdtrit

    runs = [[*figures[:half], *figures[-half:]] for figures in labels]
    logs = [[math.log(run) if run > 0 else math.nan for run in label] for label in runs]
    own = [fmean(label) for label in logs]
    first, last = (fmean(fmean(label[part]) for label in logs) for part in _halves(half))
    middle = (first + last) / 2
    off = [
        value - label_mean - half_mean + middle
        for label, label_mean in zip(logs, own, strict=True)
        for part, half_mean in zip(_halves(half), (first, last), strict=True)
        for value in label[part]
    ]
    freedom = len(off) - len(logs) - 1
    spread = math.sqrt(math.fsum(one**2 for one in off) / freedom)
    error = spread * math.sqrt(2 / (half * len(logs)))
    return last - first, float(stdtrit(freedom, 0.95)) * error


def _halves(half: int) -> tuple[slice, slice]:
    return slice(None, half), slice(half, None)
