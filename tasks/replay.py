"""What a release was measured to be, beside what it is when everything is made and measured again.

Answers of one model to the same rows are the same as long as machine, engine and kernels are; a
score may move within the 95 % interval that it was recorded with. Speed has an interval where it
was repeated: its runs' spread, by Student's t.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from weighbridge.core.formatting import UNKNOWN, human_size
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.report_chart import title_of

Agreement = Literal["equal", "inside", "outside", "other bytes", "no interval"]


class ReplayedFigure(BaseModel):
    """One figure of a release, recorded and repeated."""

    model_config = ConfigDict(frozen=True)

    figure: str
    recorded: str
    repeated: str
    agreement: Agreement


def compare(
    recorded: Measurement,
    repeated: Measurement,
    recorded_digests: Mapping[str, str],
    repeated_digests: Mapping[str, str],
) -> list[ReplayedFigure]:
    """Return every figure of a candidate, recorded and repeated, with whether they agree.

    Args:
        recorded: how the candidate was measured when it was released.
        repeated: how it was measured now.
        recorded_digests: what was made on the way, by name.
        repeated_digests: what was made of the same recipe now.
    """
    return [
        *_bytes(recorded_digests, repeated_digests),
        *_scores("", recorded.scores, repeated.scores),
        *_scores(", test split", recorded.test_scores, repeated.test_scores),
        *_faults(recorded, repeated),
        *_speeds(recorded, repeated),
        ReplayedFigure(
            figure="peak memory",
            recorded=human_size(recorded.peak_memory) if recorded.peak_memory else UNKNOWN,
            repeated=human_size(repeated.peak_memory) if repeated.peak_memory else UNKNOWN,
            agreement="no interval",
        ),
    ]


def outside(figures: Sequence[ReplayedFigure]) -> list[str]:
    """Return the names of figures that left their interval."""
    return [figure.figure for figure in figures if figure.agreement == "outside"]


def _bytes(recorded: Mapping[str, str], repeated: Mapping[str, str]) -> Iterator[ReplayedFigure]:
    for name, digest in recorded.items():
        now = repeated.get(name, "")
        yield ReplayedFigure(
            figure=name,
            recorded=_short(digest),
            repeated=_short(now) if now else UNKNOWN,
            agreement="equal" if digest == now else "other bytes",
        )


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _scores(
    split: str, recorded: Mapping[str, Score], repeated: Mapping[str, Score]
) -> Iterator[ReplayedFigure]:
    for label, score in recorded.items():
        now = repeated.get(label)
        yield ReplayedFigure(
            figure=f"{title_of(label)}{split}",
            recorded=str(score),
            repeated=str(now) if now else UNKNOWN,
            agreement=_within(score.value, now.value if now else None, score.low, score.high),
        )


def _faults(recorded: Measurement, repeated: Measurement) -> Iterator[ReplayedFigure]:
    for split, place in {"validation": "", "test": ", test split"}.items():
        counted, now = (one.faults.get(split, {}) for one in (recorded, repeated))
        for fault, score in counted.items():
            yield from _scores(f" answers{place}", {fault: score}, now)


def _within(value: float, now: float | None, low: float, high: float) -> Agreement:
    if now == value:
        return "equal"
    # Not a number is in no interval.
    return "inside" if now is not None and low <= now <= high else "outside"


def _speeds(recorded: Measurement, repeated: Measurement) -> Iterator[ReplayedFigure]:
    now = {load.concurrency: load.requests_per_second for load in repeated.load}
    spreads = _spreads(recorded)
    for load in recorded.load:
        level, rate = load.concurrency, now.get(load.concurrency)
        interval = spreads.get(level)
        yield ReplayedFigure(
            figure=f"requests/s at concurrency {level}",
            recorded=f"{load.requests_per_second:,.3g}"
            + (f" ({interval[0]:,.3g}–{interval[1]:,.3g})" if interval else ""),
            repeated=UNKNOWN if rate is None else f"{rate:,.3g}",
            agreement=_within(load.requests_per_second, rate, *interval)
            if interval
            else "no interval",
        )


def _spreads(measurement: Measurement) -> dict[int, tuple[float, float]]:
    """Return where 95 % of single runs lie, by concurrency, as far as it was repeated.

    The prediction interval of one more run of a normal sample: mean ± t s sqrt(1 + 1/n).
    """
    rates: dict[int, list[float]] = {}
    for repeat in measurement.repeats:
        rates.setdefault(repeat.load.concurrency, []).append(repeat.load.requests_per_second)
    return {level: _prediction(runs) for level, runs in rates.items() if len(runs) > 2}


def _prediction(runs: Sequence[float]) -> tuple[float, float]:
    from scipy.stats import t

    mean, count = statistics.fmean(runs), len(runs)
    reach = float(t.ppf(0.975, count - 1)) * statistics.stdev(runs) * (1 + 1 / count) ** 0.5
    return mean - reach, mean + reach
