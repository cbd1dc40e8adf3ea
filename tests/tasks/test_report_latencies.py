"""What the report tells of latencies and of the rates at which they keep their limits."""

import pytest

from tests.tasks.made import REFERENCE, load, measured
from weighbridge.serving.latencies import Latencies
from weighbridge.serving.quantiles import Decided
from weighbridge.tasks.report import weighing_report
from weighbridge.tasks.report_latencies import goodput, latency_rows
from weighbridge.tasks.select import select
from weighbridge.tasks.select_args import SelectArgs


def test_percentiles_have_their_intervals_and_are_not_told_of_too_few() -> None:
    one = measured("a")
    many = Latencies.of(number / 1000 for number in range(1, 101))
    few = Latencies.of([0.02] * 40)
    loaded = one.load[-1].model_copy(update={"ttft": many, "tpot": few})
    rows = latency_rows([one.model_copy(update={"load": [loaded]})], None)
    assert rows == [
        {
            "candidate": "llama_cpp/a",
            "first token p50 at 8": "50 ms (40–61 ms)",
            "first token p95 at 8": "95 ms (90–100 ms)",
            "time per token p50 at 8": "20 ms (20–20 ms)",
            "time per token p95 at 8": "— (40 of 72 requests)",
            "pauses p50 / p95 at 8": "1.0 ms / 2.0 ms",
        }
    ]


def test_records_without_single_latencies_tell_the_percentile_alone() -> None:
    (row,) = latency_rows([measured("a"), measured("dead", failure="died")], 8)
    assert (row["first token p95 at 8"], row["time per token p95 at 8"]) == ("50 ms", "—")


def test_a_goodput_stands_between_the_rates_that_were_decided() -> None:
    verdicts: list[tuple[float, Decided]] = [(5, "met"), (7, "undecided"), (8, "missed")]
    rates = [
        load(900).model_copy(update={"rate": rate, "within": 1.0, "objective": verdict})
        for rate, verdict in verdicts
    ]
    one = measured("a").model_copy(update={"rates": rates, "goodput": rates[1]})
    assert goodput(one) == "7 (limits met at 5, missed at 8)"
    assert goodput(one.model_copy(update={"rates": rates[:2]})) == "7 (limits met at 5)"
    assert goodput(one.model_copy(update={"rates": rates[1:]})) == "7 (limits missed at 8)"
    assert goodput(one.model_copy(update={"rates": rates[1:2]})) == "7 (not known more closely)"
    assert goodput(measured("b")) == "—"
    both = [one, measured("b")]
    decision = select(both, REFERENCE, None, SelectArgs())
    page = weighing_report(decision, both, None, "demo", SelectArgs()).page
    told = [row["requests/s that keep the limits"] for row in page.rows]
    assert sorted(told) == ["7 (limits met at 5, missed at 8)", "—"]


@pytest.mark.parametrize("form", ["markdown", "html"])
def test_latencies_are_in_every_form_of_the_report(form: str) -> None:
    one = measured("a")
    decision = select([one], REFERENCE, None, SelectArgs())
    report = weighing_report(decision, [one], None, "demo", SelectArgs())
    assert "time per token p95 at 8" in getattr(report, form)
