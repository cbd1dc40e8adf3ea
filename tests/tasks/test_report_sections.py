"""Sections of the report: what decided, where two models differ, what it cost."""

import json
from pathlib import Path

from tests.tasks.made import REFERENCE, exact, measured
from weighbridge.core.artifact import Artifact
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.tasks.data import Row, write_rows
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.report import weighing_report
from weighbridge.tasks.report_sections import (
    EXAMPLES,
    asked,
    data_card,
    differing_answers,
    evidence_rows,
    on_test_rows,
)
from weighbridge.tasks.select import select
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.weigh_args import WeighArgs


def answered(folder: Path, label: str, right: set[int], rows: int = 40) -> Measurement:
    """A candidate that answers these test rows right, and the others wrong."""
    folder = folder / label
    folder.mkdir()
    lines = [
        {
            "id": "",
            "prompt": [{"role": "user", "content": f"question {row} <b>"}],
            "reference": f"r{row}",
            "answer": f"r{row}" if row in right else f"{label} {row}" + "!" * 500 + "\u2028",
            "scores": {"exact_match": float(row in right)},
        }
        for row in range(rows)
    ]
    # As they are kept: with every character but those that JSON must escape.
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "test.jsonl").write_text(text, encoding="utf-8")
    score = exact(len(right), rows).model_copy(
        update={"per_example": [float(row in right) for row in range(rows)]}
    )
    made = measured(label)
    assert made.predictions is not None
    kept = made.predictions.model_copy().located_by(lambda _: folder)
    return made.model_copy(update={"predictions": kept, "test_scores": {"exact_match": score}})


def test_rows_on_which_two_models_differ_are_shown_from_both_sides(tmp_path: Path) -> None:
    finalist = answered(tmp_path, "new", set(range(20)))
    champion = answered(tmp_path, "old", set(range(10, 23)))
    said, rows = differing_answers(finalist, champion, "exact_match")
    assert said == (
        "Of 40 test rows that both answered llama_cpp/new is better on 10 and worse on 3."
    )
    assert len(rows) == EXAMPLES
    assert [row["exact match"] for row in rows[:6]] == ["1 against 0", "0 against 1"] * 3
    assert rows[0]["prompt"] == "question 0 <b>"
    assert (rows[0]["finalist"], rows[0]["reference"]) == ("r0", "r0")
    assert rows[0]["champion"].startswith("old 0!")
    assert len(rows[0]["champion"]) < 300


def test_models_are_compared_by_row_and_not_by_place(tmp_path: Path) -> None:
    finalist, champion = (answered(tmp_path, name, {0, 1}) for name in ("new", "old"))
    score = champion.test_scores["exact_match"]
    shifted = score.model_copy(update={"ids": [f"other {row}" for row in score.ids]})
    elsewhere = champion.model_copy(update={"test_scores": {"exact_match": shifted}})
    said, rows = differing_answers(finalist, elsewhere, "exact_match")
    assert said.startswith("Of 0 test rows")
    assert rows == []


def test_what_is_gone_or_of_an_older_release_differs_in_nothing(tmp_path: Path) -> None:
    finalist, champion = (answered(tmp_path, name, {0}) for name in ("new", "old"))
    nameless = champion.test_scores["exact_match"].model_copy(update={"ids": []})
    for without in (
        {"predictions": None},
        {"test_scores": {"exact_match": nameless}},
        {"test_scores": {}},
    ):
        assert (
            differing_answers(finalist, champion.model_copy(update=without), "exact_match")[1] == []
        )
    (tmp_path / "old" / "test.jsonl").unlink()
    assert differing_answers(finalist, champion, "exact_match")[1] == []


def test_the_report_tells_what_decided_and_escapes_what_models_say(tmp_path: Path) -> None:
    finalist, champion = answered(tmp_path, "new", set(range(30))), answered(tmp_path, "old", {1})
    decision = select([finalist], REFERENCE, None, SelectArgs(), REFERENCE)
    assert decision.evidence
    report = weighing_report(decision, [finalist], None, "demo", SelectArgs(), champion=champion)
    for page in (report.markdown, report.html):
        assert "What decided" in page
        assert "Where finalist and champion differ" in page
    assert "question 0 &lt;b&gt;" in report.html
    assert "question 0 <b>" not in report.html


def test_every_rule_that_decided_has_its_verdict_and_what_would_decide(tmp_path: Path) -> None:
    few = answered(tmp_path, "few", set(range(39)))
    reference = {"exact_match": exact(40, 40)}
    decision = select([few], reference, None, SelectArgs(max_loss=0.05), reference)
    rows = {row["rule"]: row for row in evidence_rows(decision)}
    assert rows["max_loss"]["verdict"] == "undecided"
    assert rows["max_loss"]["what would change it"].endswith(" rows")
    assert set(rows["max_loss"]) == {
        "rule",
        "rows",
        "verdict",
        "what was seen",
        "what would change it",
    }


def test_the_score_on_the_test_rows_is_told_where_they_were_asked() -> None:
    decision = select([measured("a")], REFERENCE, None, SelectArgs(), REFERENCE)
    assert on_test_rows(decision) == (
        "llama_cpp/a has exact_match 0.990 (0.980–1.000) on the test rows, which chose nothing."
    )
    assert on_test_rows(decision.model_copy(update={"finalist_score": None})) == ""


def test_the_data_card_counts_rows_and_lengths(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("validation", 2), ("test", 3)):
        rows = [
            Row(prompt="x" * (10 + row), completion="ok", cluster=f"c{row}") for row in range(count)
        ]
        write_rows(rows, tmp_path / f"{split}.jsonl")
    data = Artifact(digest="sha256:" + "0" * 64, format="jsonl", size=1).located_by(
        lambda _: tmp_path
    )
    assert data_card(data) == {
        "rows": "5 train, 2 validation, 3 test; validation and test are of 3 clusters",
        "prompts": "11 characters at the median, 12 at most",
        "references": "2 characters at the median, 2 at most",
    }


def test_every_limit_of_a_recipe_is_told_as_people_write_it() -> None:
    weigh = WeighArgs(engines=[LlamaCppArgs(kind="llama_cpp")], concurrency=[1, 4])
    limits = {
        name
        for name in SelectArgs.model_fields
        if name == "floor" or name.startswith(("max_", "min_"))
    } - {"min_improvement"}
    given = SelectArgs(**dict.fromkeys(limits, 0.5) | {"max_memory": 1 << 30, "max_size": 1 << 20})
    told = asked(given, weigh, ["gguf-Q8_0"])
    assert {limit.split()[0] for limit in told["limits"].split(", ")} == limits
    assert "max_memory 1.00 GiB" in told["limits"]
    assert told["candidates"] == "gguf-Q8_0 on llama_cpp"
    assert told["objective"] == "throughput at concurrency 4"
    assert told["to replace what serves"] == (
        "better in exact_match; or not worse by 0.02, and better in throughput by 5.0%"
    )


def test_rates_and_their_limits_are_told() -> None:
    weigh = WeighArgs(
        engines=[LlamaCppArgs(kind="llama_cpp")], arrivals="poisson", ttft_limit=0.5, tpot_limit=0.1
    )
    told = asked(SelectArgs(objective="goodput"), weigh, ["a"])
    assert told["load"].endswith("the highest rate at which 95% keep TTFT 500 ms and TPOT 100 ms")
    assert told["objective"] == "goodput"


def test_what_an_engine_left_out_is_noted_beside_what_is_in_doubt() -> None:
    silent = measured("a").model_copy(update={"left_out": ["it tells no log-probabilities"]})
    decision = select([silent], REFERENCE, None, SelectArgs(), REFERENCE)
    worn = decision.model_copy(update={"notes": {"the test rows": "used often"}})
    report = weighing_report(worn, [silent], None, "demo", SelectArgs())
    assert report.page.notes == {
        "the test rows": "used often",
        "llama_cpp/a": "it tells no log-probabilities",
    }
