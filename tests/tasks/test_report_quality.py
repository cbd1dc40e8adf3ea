"""Faults and slices in the report: of every candidate, with the finalist's test rows."""

from tests.tasks.made import REFERENCE, exact, measured
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.intervals import mean_score
from weighbridge.tasks.report import weighing_report
from weighbridge.tasks.report_quality import fault_rows, slice_rows, what_is_counted
from weighbridge.tasks.select import select
from weighbridge.tasks.select_args import SelectArgs

SLICES = {str(row): "cards" if row < 50 else "loans" for row in range(200)}


def candidate(label: str, empty: int = 2) -> Measurement:
    score = mean_score([1.0] * empty + [0.0] * (200 - empty), greater_is_better=False)
    score = score.model_copy(update={"ids": list(SLICES)})
    return measured(label).model_copy(
        update={
            "faults": {"validation": {"empty": score}, "test": {"empty": score}},
            "uncounted": {"refused": "the rows are not English"},
            "slices": {"validation": SLICES, "test": SLICES},
            "scores": {"exact_match": exact(100)},
        }
    )


def test_faults_are_counts_with_their_interval_the_finalist_on_test_rows_too() -> None:
    rows = fault_rows([candidate("a"), candidate("b", 0), measured("old")], "llama_cpp/a")
    assert rows == [
        {"candidate": "llama_cpp/a", "empty": "2 of 200 (0.003–0.036)"},
        {"candidate": "llama_cpp/a, test rows", "empty": "2 of 200 (0.003–0.036)"},
        {"candidate": "llama_cpp/b", "empty": "0 of 200 (0.000–0.019)"},
    ]
    said = what_is_counted([candidate("a")])
    assert "empty: nothing but white space" in said
    assert "refused is not told of any candidate: the rows are not English." in said
    alone = candidate("b").model_copy(update={"uncounted": {"truncated": "it gives no reason"}})
    assert "truncated is not told of llama_cpp/b: it gives no reason" in what_is_counted(
        [candidate("a"), alone]
    )
    assert what_is_counted([measured("old")]) == ""


def test_each_slice_is_a_row_with_every_candidate() -> None:
    rows = slice_rows([candidate("a"), candidate("b")], "exact_match", "llama_cpp/a")
    cards, loans = rows
    assert cards["slice"] == "cards"
    assert cards["exact match, llama_cpp/b"] == "1.000 of 50 (0.929–1.000)"
    assert loans["exact match, llama_cpp/a"] == "0.333 of 150 (0.263–0.412)"
    assert cards["faults, llama_cpp/a"] == "empty 2"
    assert loans["faults, llama_cpp/a"] == "none"
    assert "exact match, llama_cpp/a, test rows" in cards
    assert slice_rows([measured("old")], "exact_match", None) == []


def test_the_page_holds_both() -> None:
    measurements = [candidate("a")]
    decision = select(measurements, REFERENCE, None, SelectArgs(max_loss=None))
    report = weighing_report(decision, measurements, None, "demo", SelectArgs())
    for page in (report.html, report.markdown):
        assert "Faults of answers" in page
        assert "By slice" in page
        assert "loans" in page
    assert report.page.faults[1]["candidate"] == "llama_cpp/a, test rows"
    assert report.figures[0]["faults"]["test"]["empty"]["value"] == 0.01
