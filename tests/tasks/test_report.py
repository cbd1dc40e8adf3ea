"""The report: everybody in it, nothing from outside in it."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tasks.made import REFERENCE, exact, measured, repeated
from weighbridge.tasks.report import UNITS, WeighingReport, weighing_report
from weighbridge.tasks.report_chart import draw
from weighbridge.tasks.report_page import Page, Section
from weighbridge.tasks.select import select
from weighbridge.tasks.select_args import Goal, SelectArgs


@pytest.fixture(scope="module")
def report() -> WeighingReport:
    measurements = [
        measured("slow", speed=300),
        measured("fast", speed=900).model_copy(update={"test_scores": {"exact_match": exact(150)}}),
        measured("bad", right=20),
        measured("dead", failure="died | <script>alert(1)</script>\nsecond line"),
    ]
    decision = select(measurements, REFERENCE, None, SelectArgs())
    evaluated = SimpleNamespace(
        base={"exact_match": exact(1)}, finetuned={"exact_match": exact(198)}, test={}
    )
    return weighing_report(
        decision,
        measurements,
        evaluated,
        "demo",
        SelectArgs(),
        facts={"base model": "sha256:abc"},
        currency="EUR",
    )


def test_rows_hold_every_candidate_with_the_same_columns_the_winner_first(
    report: WeighingReport,
) -> None:
    assert [row["candidate"] for row in report.page.rows] == [
        f"llama_cpp/{name}" for name in ("fast", "slow", "bad", "dead")
    ]
    assert report.page.rows[0] == {
        "candidate": "llama_cpp/fast",
        "exact match": "0.990 (0.980–1.000)",
        "NLL": "0.010 (0.009–0.011)",
        "TTFT p50 / p95 at 8": "25 ms / 50 ms",
        "tokens/s at 1 / 8": "450 / 900",
        "requests/s at 1 / 8": "8.00 / 16.0",
        "memory": "50.0 MiB",
        "size": "2.0 MiB",
        "EUR / M tokens": "0.1",
        "EUR / 1,000 requests": "0.2",
        "verdict": "winner",
    }
    assert all(list(row) == list(report.page.rows[0]) for row in report.page.rows)
    assert "slower: 300 tokens/s against 900 tokens/s" in report.page.rows[1]["verdict"]


def test_the_test_split_is_told_of_what_ships(report: WeighingReport) -> None:
    assert report.page.before_after == [
        {
            "metric": "exact match",
            "base": "0.005 (-0.005–0.015)",
            "fine-tuned": "0.990 (0.980–1.000)",
            "winner": "0.990 (0.980–1.000)",
            "winner, test split": "0.750 (0.740–0.760)",
        }
    ]
    for page in (report.html, report.markdown):
        assert "winner, test split" in page
        assert "0.750" in page


def test_what_engines_took_latencies_and_the_finalists_score_are_told(
    report: WeighingReport,
) -> None:
    page = report.page
    for rows in (page.engines, page.latencies):
        assert {"llama_cpp/fast", "llama_cpp/slow"} <= {row["candidate"] for row in rows}
    assert page.proved.startswith("llama_cpp/fast has exact_match 0.750")


def test_without_a_fine_tune_the_test_split_is_told_of_what_ships_as_well() -> None:
    winner = measured("fast").model_copy(update={"test_scores": {"exact_match": exact(150)}})
    decision = select([winner], REFERENCE, None, SelectArgs())
    made = weighing_report(decision, [winner], None, "demo", SelectArgs())
    assert made.page.before_after[0] == {
        "metric": "exact match",
        "winner": "0.990 (0.980–1.000)",
        "winner, test split": "0.750 (0.740–0.760)",
    }
    assert "## What ships" in made.markdown


def test_programs_get_numbers_whose_units_are_told(report: WeighingReport) -> None:
    first = report.figures[0]
    assert first["candidate"] == "llama_cpp/fast"
    assert first["scores"]["exact_match"]["value"] == 0.99
    assert first["test_scores"]["exact_match"]["value"] == 0.75
    assert first["load"][1]["tokens_per_second"] == 900
    assert (first["peak_memory"], first["size"]) == (50 << 20, 2 << 20)
    assert report.figures[-1]["peak_memory"] is None, "the one that died was not measured"
    numbers = {key for key, value in first.items() if isinstance(value, float | int)}
    of_load = {key for key, value in first["load"][0].items() if isinstance(value, float)}
    assert numbers | of_load <= {*UNITS, "cost_per_million_tokens", "cost_per_thousand_requests"}
    assert [figures["candidate"] for figures in report.figures] == [
        row["candidate"] for row in report.page.rows
    ]


def _between(text: str, begin: str, end: str) -> str:
    return text.partition(begin)[2].partition(end)[0]


def test_markdown_tables_are_not_broken_by_what_engines_say(report: WeighingReport) -> None:
    lines = [
        line
        for line in _between(report.markdown, "## Candidates", "\n## ").splitlines()
        if line.startswith("| llama_cpp") or "**llama" in line
    ]
    assert len(lines) == 4
    cells = {len(re.split(r"(?<!\\)\|", line)) for line in lines}
    assert len(cells) == 1
    assert "- **base model**: sha256:abc\n" in report.markdown
    assert "- **processor**: a processor\n" in report.markdown


def test_the_page_needs_nothing_from_outside_and_runs_nothing_of_an_engines_log(
    report: WeighingReport,
) -> None:
    assert "&lt;script&gt;" in report.html
    assert "<script" not in report.html
    assert not re.findall(r"(?:src|href)=\"(?!data:)", report.html)
    assert "llama_cpp/dead" in report.html


def test_it_is_saved_in_every_form(report: WeighingReport, tmp_path: Path) -> None:
    files = report.save(tmp_path / "report")
    assert [file.name for file in files] == [
        "report.md",
        "report.html",
        "report.png",
        "report.json",
    ]
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_what_was_asked_what_it_costs_and_how_to_repeat_it_are_in_every_form(
    tmp_path: Path,
) -> None:
    command = "WEIGHBRIDGE_HOME=/a weighbridge run --replay demo@6"
    measurements = [measured("fast", speed=900), measured("small", speed=300, size=1 << 20)]
    decision = select(measurements, REFERENCE, None, SelectArgs(), REFERENCE)
    made = weighing_report(
        decision,
        measurements,
        None,
        "demo",
        SelectArgs(),
        asked=[Section(title="What was asked", facts={"objective": "throughput"})],
        sections=[
            Section(title="What it costs", facts={"training": "60 s, 0.002 EUR"}),
            Section(title="How to repeat it", facts={"again": command}, copied=True),
        ],
    )
    page, text = made.html, made.markdown
    for said in ("What was asked", "0.002 EUR", "comes first by another objective: size", command):
        assert said in page
        assert said in text
    assert text.index("What was asked") < text.index("Candidates") < text.index("What it costs")
    assert f"    {command}\n" in text, "nothing of a command is escaped as in a table"
    made.save(tmp_path)
    assert Page.model_validate_json((tmp_path / "report.json").read_text()) == made.page


def test_repeated_speeds_have_their_interval() -> None:
    fast = repeated(measured("fast", speed=900), 1.0, 1.01, 0.99, 1.02, 0.98)
    measurements = [fast, repeated(measured("other", speed=300), 1.0, 1.0, 1.0), measured("once")]
    decision = select(measurements, REFERENCE, None, SelectArgs())
    rows = weighing_report(decision, measurements, None, "demo", SelectArgs()).page.rows
    assert [row["tokens/s at 8, repeated"] for row in rows] == [
        "900 (882–918)",
        "300 (300–300)",
        "—",
    ]


def test_a_report_without_a_winner_says_so() -> None:
    measurements = [measured("dead", failure="died")]
    decision = select(measurements, REFERENCE, None, SelectArgs())
    made = weighing_report(decision, measurements, None, "demo", SelectArgs())
    assert made.page.headline == "no winner"
    assert "died" in made.markdown
    assert made.chart.startswith(b"\x89PNG")


def axis_of(
    monkeypatch: pytest.MonkeyPatch, objective: Goal, tokens_per_second: float, *, priced: bool
) -> str:
    """What the chart shows from left to right, on every panel."""
    from matplotlib.axes import Axes

    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_xlabel", lambda self, title, **unused: titles.append(title))
    costs = {} if priced else {"cost": None, "request_cost": None}
    measurements = [
        measured("a", speed=tokens_per_second, **costs),
        measured("dead", failure="died"),
    ]
    args = SelectArgs(objective=objective)
    draw(measurements, select(measurements, REFERENCE, None, args), "", args, REFERENCE, "EUR")
    (title,) = set(titles)
    return title


@pytest.mark.parametrize(
    ("objective", "tokens_per_second", "axis"),
    [
        ("throughput", 900, "cost of a million tokens"),
        ("requests", 900, "cost of 1,000 requests"),
        ("throughput", 48, "cost of 1,000 requests"),
        ("request_cost", 900, "cost of 1,000 requests"),
        ("cost", 48, "cost of 1,000 requests"),
        ("cost", 900, "cost of a million tokens"),
    ],
)
def test_the_chart_shows_costs_of_requests_where_answers_are_short_or_they_decide(
    objective: Goal, tokens_per_second: float, axis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert axis_of(monkeypatch, objective, tokens_per_second, priced=True).startswith(axis)


@pytest.mark.parametrize(
    ("objective", "tokens_per_second", "axis"),
    [
        ("throughput", 900, "output tokens per second"),
        ("requests", 900, "requests per second"),
        ("throughput", 48, "requests per second"),
    ],
)
def test_the_chart_shows_speeds_where_no_price_is_known(
    objective: Goal, tokens_per_second: float, axis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert axis_of(monkeypatch, objective, tokens_per_second, priced=False).startswith(axis)


def test_the_chart_draws_the_limits_that_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    named: list[str] = []
    monkeypatch.setattr(Axes, "annotate", lambda self, text, *place, **unused: named.append(text))
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **unused: named.append(text))
    args = SelectArgs(floor=0.98, max_loss=0.5, max_nll_increase=0.002, max_cost=0.11)
    measurements = [measured("a"), measured("b", speed=300, cost=0.2)]
    draw(measurements, select(measurements, REFERENCE, None, args), "", args, REFERENCE, "EUR")
    assert named == [
        "floor",
        "far beyond: max_loss 0.49",
        "max_cost",
        "max_nll_increase",
        "max_cost",
    ]


def test_matplotlib_is_not_imported_with_the_module() -> None:
    code = "import sys, weighbridge.tasks.report, weighbridge.tasks.select; "
    code += "sys.exit('matplotlib' in sys.modules or 'jinja2' in sys.modules)"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
