"""Limits on the faults of answers: how many may be empty, cut off, refusals, malformed."""

from collections.abc import Iterator
from typing import Final

from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select_args import LIMITED, SelectArgs
from weighbridge.tasks.selection.evidence import Evidence, Rows, unknown
from weighbridge.tasks.selection.score_limit import beyond

SHARES: Final = {fault: f"the share of {fault} answers" for fault in LIMITED}


def faults_within(measurement: Measurement, rows: Rows, args: SelectArgs) -> Iterator[Evidence]:
    """Yield whether each share that the recipe limits is within its limit, by its interval."""
    counted = measurement.faults.get(rows, {})
    for fault in LIMITED:
        limit, rule = args.most(fault), f"max_{fault}"
        if limit is None:
            continue
        if fault in counted:
            yield beyond(rule, SHARES[fault], counted[fault], limit, rows)
        else:
            why = measurement.uncounted.get(fault, "an earlier release measured it")
            yield unknown(rule, f"{SHARES[fault]} is not known: {why}")
