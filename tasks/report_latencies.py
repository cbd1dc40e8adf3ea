"""What a request waits for, as rows of the report: its first token, the next ones, and at which
rate of requests these keep their limits.
"""

import math
from collections.abc import Sequence

from weighbridge.core.formatting import UNKNOWN, figure, human_seconds
from weighbridge.serving.latencies import Latencies
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.selection.objective import bracket, figures_at


def latency_rows(
    measurements: Sequence[Measurement], concurrency: int | None
) -> list[dict[str, str]]:
    """Return a row for each candidate that was loaded at the concurrency that decides: percentiles
    with their intervals, but of pauses, which are many in one answer and not independent.
    """
    rows = []
    for one in measurements:
        load = figures_at(one, concurrency)
        if load is None:
            continue
        at = f" at {load.concurrency}"
        rows.append(
            {
                "candidate": one.candidate.label,
                f"first token p50{at}": told(load.ttft, 0.5, load.ttft_p50),
                f"first token p95{at}": told(load.ttft, 0.95, load.ttft_p95),
                f"time per token p50{at}": told(load.tpot, 0.5, load.tpot_p50),
                f"time per token p95{at}": told(load.tpot, 0.95, load.tpot_p95),
                f"pauses p50 / p95{at}": f"{seconds(load.itl_p50)} / {seconds(load.itl_p95)}",
            }
        )
    return rows


def goodput(measurement: Measurement) -> str:
    """Return the requests per second that keep the limits, with the highest rate at which they are
    met beyond doubt, and the lowest at which they are missed, where there are such.
    """
    if measurement.sustained is None:
        return UNKNOWN
    met, missed = bracket(measurement)
    decided = [f"met at {figure(met)}"] if met else []
    decided += [f"missed at {figure(missed)}"] if math.isfinite(missed) else []
    known = f"limits {', '.join(decided)}" if decided else "not known more closely"
    return f"{figure(measurement.sustained)} ({known})"


def told(latencies: Latencies | None, part: float, alone: float | None) -> str:
    """Return a percentile with its interval; the figure alone of records without single ones."""
    return latencies.told(part) if latencies and latencies.total else seconds(alone)


def seconds(value: float | None) -> str:
    """Return a latency for people; a dash where none was measured."""
    return UNKNOWN if value is None else human_seconds(value)
