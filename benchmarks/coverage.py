"""How often the 95 % interval of every shipped metric holds the true figure.

Rows are drawn from known laws: lengths are lognormal, and rows of one cluster are alike (half of
what makes a row hard is the cluster's). The scores go through the product's own function.
Beside `nll` stands the rule of before: the spread of unweighted row means.

Usage: python -m benchmarks.coverage [--quick] [--draws 1000]
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtr

from benchmarks.common import Figures, report
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.metrics.intervals import Z, with_interval
from weighbridge.tasks.statistics.resampling import BLEU

Numbers = NDArray[np.float64]
ROWS = (30, 60, 150, 500, 1500)
LENGTHS = (1.0, 1.5)
"""Standard deviations of the logarithm of a row's tokens."""
CLUSTERS = (1, 5)
"""Rows of a cluster."""
MEDIAN_TOKENS = 40
FEW = 150
"""Rows from which on the goal is the strict one."""


class Case(NamedTuple):
    """Rows as they are drawn: how hard each is, between 0 and 1, and how long."""

    generator: np.random.Generator
    hardness: Numbers
    tokens: Numbers


class Law(NamedTuple):
    """How one metric scores such rows, and what its true figure is."""

    score: Callable[[Case], Score]
    truth: Callable[[float], float]
    """By the spread of lengths."""
    lengths: tuple[float, ...] = LENGTHS


def draw(
    generator: np.random.Generator, rows: int, size: int, spread: float
) -> tuple[Case, list[str]]:
    clusters = np.arange(rows) // size
    hard = generator.normal(size=rows)
    if size > 1:
        hard = (hard + generator.normal(size=rows // size)[clusters]) / math.sqrt(2)
    tokens = np.maximum(1, np.round(generator.lognormal(math.log(MEDIAN_TOKENS), spread, rows)))
    return Case(generator, ndtr(hard), tokens), [str(c) for c in clusters] if size > 1 else []


def scored(value: float, rows: Numbers, **options: Any) -> Score:
    # Unchecked: to look at every number takes longer than the interval.
    return Score.model_construct(
        value=value, low=value, high=value, per_example=rows.tolist(), **options
    )


def exact_match(case: Case) -> Score:
    rows = (case.hardness < 0.8).astype(float)
    return scored(float(rows.mean()), rows)


FIELDS = (0.05, 0.1, 0.2, 0.4)
"""Chances of 0, at most 1, 2 and 3 of four fields right."""


def json_fields(case: Case) -> Score:
    rows = np.searchsorted(FIELDS, case.hardness) / 4
    return scored(float(rows.mean()), rows)


def rouge_l(case: Case) -> Score:
    rows = np.sqrt(case.hardness)
    return scored(float(rows.mean()), rows)


def hub(case: Case) -> Score:
    """Return a mean of rows between 0 and 100, as chrF's."""
    rows = 100 * case.hardness**2
    return scored(float(rows.mean()), rows)


def nats(case: Case) -> Numbers:
    """Return each row's nats per token: a gamma law of mean 2 over rows, tokens exponential."""
    rows = gammaincinv(4, case.hardness) / 2
    drawn: Numbers = rows * case.generator.gamma(case.tokens, 1 / case.tokens)
    return drawn


def nll(case: Case) -> Score:
    rows = nats(case)
    value = float((rows * case.tokens).sum() / case.tokens.sum())
    return scored(value, rows, weights=case.tokens.tolist(), greater_is_better=False)


def perplexity(case: Case) -> Score:
    score = nll(case)
    rows = np.exp(np.minimum(score.per_example, 700.0))
    return scored(
        math.exp(score.value),
        rows,
        weights=score.weights,
        figure="exponential",
        greater_is_better=False,
    )


def ngrams(case: Case) -> Numbers:
    """Return what each row adds to BLEU: half to nine tenths of the words are right."""
    chance, right, every = 0.5 + 0.4 * case.hardness, [case.tokens], []
    for order in range(4):
        every.append(np.maximum(case.tokens - order, 0))
        most = np.minimum(right[-1], every[-1]).astype(int)
        right.append(case.generator.binomial(most, chance).astype(float))
    wanted = np.round(case.tokens * case.generator.lognormal(0.05, 0.1, len(case.tokens)))
    return np.stack([*right[1:], *every, case.tokens, wanted], axis=1)


def bleu(case: Case) -> Score:
    parts = ngrams(case)
    value = float(BLEU.value(parts.sum(axis=0)))
    return scored(value, np.zeros(len(parts)), statistics=parts.tolist(), figure="bleu")


@cache
def true_bleu(spread: float) -> float:
    case, _ = draw(np.random.default_rng(0), 400_000, 1, spread)
    return float(BLEU.value(ngrams(case).sum(axis=0)))


LAWS = {
    "exact_match": Law(exact_match, lambda _: 0.8, (1.0,)),
    "json_fields": Law(
        json_fields, lambda _: float(np.diff([0, *FIELDS, 1]) @ np.arange(5) / 4), (1.0,)
    ),
    "rouge_l": Law(rouge_l, lambda _: 2 / 3, (1.0,)),
    "hub": Law(hub, lambda _: 100 / 3, (1.0,)),
    "nll": Law(nll, lambda _: 2.0),
    "perplexity": Law(perplexity, lambda _: math.exp(2.0)),
    "bleu": Law(bleu, true_bleu),
}


def unweighted(score: Score) -> tuple[float, float]:
    """Return the interval of before: the figure, and the spread of its rows' plain mean."""
    half = Z * float(np.std(score.per_example, ddof=1)) / math.sqrt(len(score.per_example))
    return score.value - half, score.value + half


def covered(name: str, rows: int, size: int, spread: float, draws: int) -> tuple[float, float]:
    """Return in how many per cent of the draws the interval holds, and that of before."""
    law, generator = LAWS[name], np.random.default_rng([rows, size, int(10 * spread)])
    truth = law.truth(spread)
    holds = np.zeros(2)
    for _ in range(draws):
        case, clusters = draw(generator, rows, size, spread)
        score = with_interval(law.score(case).model_copy(update={"clusters": clusters}))
        ends = ((score.low, score.high), unweighted(score))
        holds += [low <= truth <= high for low, high in ends]
    now, before = 100 * holds / draws
    return float(now), float(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="400 draws, up to 500 rows")
    parser.add_argument("--draws", type=int, help="of each case; 1000 where nothing is said")
    parser.add_argument("--metric", choices=LAWS, help="this one alone")
    options = parser.parse_args()
    draws = options.draws or (400 if options.quick else 1000)
    figures = Figures("coverage")
    for name, law in LAWS.items():
        if options.metric and name != options.metric:
            continue
        for spread in law.lengths:
            for size in CLUSTERS:
                for rows in [count for count in ROWS if count <= 500 or not options.quick]:
                    print(f"{name}, {rows} rows in {size}s", file=sys.stderr, flush=True)
                    now, before = covered(name, rows, size, spread, draws)
                    key = f"{name}_{rows}_rows_in_{size}s_lengths_{spread:g}"
                    strict = rows >= FEW
                    figures.add(
                        key, now, at_least=93 if strict else 90, at_most=97 if strict else None
                    )
                    if name == "nll":
                        figures.add(f"{key}_before", before)
    report(figures)


if __name__ == "__main__":
    main()
