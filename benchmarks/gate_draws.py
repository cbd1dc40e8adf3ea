"""Draws for the benchmark of the gate: rows by clusters, and speeds, judged by the product's own
statistics, which are remembered by the counts that they are asked of.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, t

from weighbridge.tasks.selection.replacement import can_test
from weighbridge.tasks.statistics import proportions
from weighbridge.tasks.statistics.repeats import TIE, levels

BLOCKS: Final = 5
NOISE: Final = 0.07
"""Standard deviation of the log of one run's speed."""
COPIED: Final = 0.5
"""Chance that a row of a cluster does as its cluster does."""
Z: Final = proportions.normal_quantile(0.05)
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Cell:
    """One size of data, and one number of challengers."""

    rows: int
    discordance: float
    cluster: int
    candidates: int

    @property
    def groups(self) -> int:
        return self.rows // self.cluster

    @property
    def spread(self) -> float:
        """Standard deviation of a row's difference, clusters accounted for."""
        return math.sqrt(self.discordance * (1 + (self.cluster - 1) * COPIED**2))

    @property
    def rows_by_themselves(self) -> int:
        """Return as many independent rows as tell as much."""
        return round(self.rows * self.discordance / self.spread**2)

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, {self.discordance:.0%} differ, clusters of {self.cluster}, "
            f"{self.candidates} candidates"
        )


@cache
def outcomes(size: int, discordance: float, gain: float) -> tuple[Counts, Floats]:
    """Return what a cluster can gain and lose, and with which chances."""
    row = {(1, 0): (discordance + gain) / 2, (0, 1): (discordance - gain) / 2}
    row[0, 0] = 1 - discordance
    chances: dict[tuple[int, int], float] = {}
    for (shared, chance), copies in itertools.product(row.items(), range(size + 1)):
        # A cluster of one row is that row.
        copying = binom.pmf(copies, size, COPIED if size > 1 else 0.0)
        own = size - copies
        for gained in range(own + 1):
            for lost in range(own - gained + 1):
                ways = math.comb(own, gained) * math.comb(own - gained, lost)
                likely = row[1, 0] ** gained * row[0, 1] ** lost
                likely *= row[0, 0] ** (own - gained - lost) * ways
                key = (gained + copies * shared[0], lost + copies * shared[1])
                chances[key] = chances.get(key, 0.0) + chance * copying * likely
    kinds = np.array(list(chances), dtype=np.int64)
    shares = np.array(list(chances.values()))
    return kinds, shares / shares.sum()


@dataclass(frozen=True)
class Split:
    """Draws of one split: counts of clusters, by what they gained and lost."""

    cell: Cell
    kinds: Counts
    counts: Counts
    """In the shape (draws, challengers, kinds)."""

    @classmethod
    def draw(
        cls, cell: Cell, gain: float, shape: tuple[int, int], rng: np.random.Generator
    ) -> "Split":
        kinds, chances = outcomes(cell.cluster, cell.discordance, gain)
        return cls(cell, kinds, rng.multinomial(cell.groups, chances, size=shape))

    def sums(self) -> tuple[Floats, Floats, Floats]:
        """Return the difference, as a share of rows, and its clusters' sums' rises and squares."""
        sums = self.kinds[:, 0] - self.kinds[:, 1]
        return (
            self.counts @ sums / self.cell.rows,
            self.counts @ np.maximum(sums, 0),
            self.counts @ sums**2,
        )

    def wald_error(self) -> Floats:
        """Return the standard error of the difference over rows, clusters left out of account."""
        differing = self.counts @ self.kinds.sum(axis=1) / self.cell.rows
        difference = self.sums()[0]
        error: Floats = np.sqrt((differing - difference**2) / (self.cell.rows - 1))
        return error

    def better(self) -> Counts:
        """Return 1 where the challenger is shown to be better, -1 to be worse, else 0."""
        difference, _, squares = self.sums()
        sums = self.kinds[:, 0] - self.kinds[:, 1]
        values = [value for value in range(-self.cell.cluster, self.cell.cluster + 1) if value]
        times = np.stack([self.counts[..., sums == value].sum(-1) for value in values], -1)
        total = np.rint(difference * self.cell.rows)
        verdicts = np.zeros(total.shape, dtype=np.int64)
        # At less than 1.4 standard errors no p value is near 0.05: the normal one is 0.16.
        for place in np.argwhere(total**2 > 1.96 * squares):
            at = tuple(place)
            p = _sign_flip(tuple(times[at].tolist()), tuple(values))
            verdicts[at] = int(np.sign(total[at])) if p <= 0.05 else 0
        return verdicts

    def not_worse(self, margin: float) -> Counts:
        """Return 1 where the challenger is shown to be no worse by the margin, -1 where it is
        shown to be worse, else 0.
        """
        difference, rises, squares = self.sums()
        falls = rises - np.rint(difference * self.cell.rows).astype(int)
        verdicts = np.zeros(rises.shape, dtype=np.int64)
        for place in np.ndindex(rises.shape):
            counts = (int(rises[place]), int(falls[place]), int(squares[place]))
            verdicts[place] = _tango(*counts, self.cell.groups, self.cell.rows, margin)
        return verdicts


@cache
def _sign_flip(times: tuple[int, ...], values: tuple[int, ...]) -> float:
    """Return the product's p value, given how many clusters have which sum."""
    if len(values) == 2:
        return proportions.mcnemar_mid_p(times[1], times[0])
    return proportions.sign_flip_mid_p(list(np.repeat(values, times)))


@cache
def _tango(rises: int, falls: int, squares: int, groups: int, rows: int, margin: float) -> int:
    """Return the verdict of the product's interval, in units as `paired` counts them."""
    size = rises + falls
    unit = (squares / size if size else rows / groups) * groups / rows
    gained, lost = (part * groups / rows / unit for part in (rises, falls))
    if proportions.tango_score(gained, lost, groups, -margin / unit) > Z:
        low, high = (unit * end for end in proportions.tango(gained, lost, groups, Z))
        return int(low > -margin and can_test(high - low, margin))
    return -int(proportions.tango_score(gained, lost, groups, -margin / unit) < -Z)


@dataclass(frozen=True)
class Speeds:
    """Logs of single runs and of repeats; the champion's truth is 0."""

    champion: Floats
    challengers: Floats
    champion_repeats: Floats
    challengers_repeats: Floats

    @classmethod
    def draw(cls, speed: float, shape: tuple[int, int], rng: np.random.Generator) -> "Speeds":
        draws, candidates = shape

        def noise(*sizes: int) -> Floats:
            return rng.normal(0.0, NOISE, sizes)

        truth = math.log(speed)
        return cls(
            noise(draws),
            truth + noise(draws, candidates),
            noise(draws, BLOCKS),
            truth + noise(draws, candidates, BLOCKS),
        )

    def faster_than_champion(self, least: float) -> Counts:
        """Return 1 where the repeats show a challenger to be faster by a share, -1 where they show
        it not to be, else 0.
        """
        low, high = interval(self.challengers_repeats - self.champion_repeats[:, None, :])
        verdicts: Counts = np.where((low >= math.log1p(least)) & (low > 0), 1, 0)
        return np.where(high < math.log1p(least), -1, verdicts)

    def means(self) -> Floats:
        """Return the challengers' mean logs over their repeats."""
        return np.asarray(self.challengers_repeats.mean(axis=-1))

    def tied(self, best: Counts) -> Booleans:
        """Return who is as fast as the best one beyond doubt."""
        fastest = self.challengers_repeats[np.arange(len(best)), best][:, None, :]
        low, high = interval(self.challengers_repeats - fastest)
        edge = math.log1p(TIE)
        return np.asarray((low >= -edge) & (high <= edge))


def interval(logs: Floats) -> tuple[Floats, Floats]:
    level = levels((BLOCKS,), 0.025)[-1]
    half = t.isf(level, BLOCKS - 1) * logs.std(axis=-1, ddof=1) / math.sqrt(BLOCKS)
    return logs.mean(axis=-1) - half, logs.mean(axis=-1) + half
