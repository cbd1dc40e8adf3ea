"""What the terminal shows: reports, tables, progress."""

import io
import re

import pytest
from rich.console import Console

from weighbridge.cli import report, terminal
from weighbridge.core.progress import Step
from weighbridge.tasks.report_page import Page, Section


def screen(width: int, monkeypatch: pytest.MonkeyPatch, *, piped: bool = False) -> io.StringIO:
    """What is printed to a terminal of so many columns, or into a pipe."""
    out = io.StringIO()
    made = Console(file=out, width=width, force_terminal=not piped, color_system=None)
    monkeypatch.setattr(terminal, "console", made)
    return out


def shown(
    candidates: int, width: int, monkeypatch: pytest.MonkeyPatch, *, piped: bool = False
) -> str:
    """The report of so many candidates."""
    rows = [
        {
            "candidate": f"llama_cpp/gguf-Q{number}",
            "exact match": f"0.{number:02} (0.100–0.900)",
            "TTFT p50 / p95": f"{number} ms / 99 ms",
            "verdict": "winner" if number == 0 else "slower",
        }
        for number in range(candidates)
    ]
    out = screen(width, monkeypatch, piped=piped)
    notes = {"llama_cpp/gguf-Q0": "too few rows"}
    page = Page(
        name="reports",
        headline="winner: the first",
        why="It is fast.",
        decided=True,
        rows=rows,
        notes=notes,
    )
    report.print_report(page)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_every_candidates_figures_stay_whole_however_many_there_are(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(11, width, monkeypatch)
    for number in range(11):
        assert len(re.findall(rf"\b0\.{number:02}(?= |\n)", text)) == 1
        assert len(re.findall(rf"(?<!\d){number} ms / 99 ms", text)) == 1
    assert text.count("(0.100–0.900)") == 11
    assert max(map(len, text.splitlines())) <= width


def test_candidates_that_fit_stand_in_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(3, 80, monkeypatch).count("exact match") == 1
    assert shown(11, 80, monkeypatch).count("exact match") == 3


def test_a_piped_report_is_one_table_of_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(11, 80, monkeypatch, piped=True).count("exact match") == 1


def test_reasons_and_doubts_follow_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    tail = shown(2, 80, monkeypatch).splitlines()[-4:]
    assert tail == [
        "winner: the first",
        "It is fast.",
        "llama_cpp/gguf-Q1: slower",
        "in doubt: llama_cpp/gguf-Q0: too few rows",
    ]


COMMAND = "WEIGHBRIDGE_HOME=/a/home /a/path/bin/weighbridge run --replay demo@6"


def whole(width: int, monkeypatch: pytest.MonkeyPatch, *, piped: bool = False) -> str:
    """Everything that a report says, as `show` prints it."""
    out = screen(width, monkeypatch, piped=piped)
    page = Page(
        name="reports",
        headline="winner: llama_cpp/gguf-Q8_0",
        why="It is the only candidate within the limits.",
        decided=True,
        winner="llama_cpp/gguf-Q8_0",
        asked=[Section(title="What was asked", facts={"limits": "floor 0.95, max_memory 2 GiB"})],
        rows=[{"candidate": "llama_cpp/gguf-Q8_0", "NLL": "0.1 (0.0–0.2)", "verdict": "winner"}],
        evidence=[
            {
                "rule": "max_loss",
                "rows": "test",
                "verdict": "shown",
                "what was seen": "it is at most 0.025 worse than the other's [1] (allowed: 0.05)",
                "what would change it": "a limit below 0.025",
            }
        ],
        proved="It has 1.0 on the test rows.",
        changes=["another comes first by another objective: size (1.8 MiB)"],
        differing=("It is better on 1.", [{"prompt": "what is [b]?", "finalist": "a letter"}]),
        before_after=[{"metric": "NLL", "base": "2.5 (2.4–2.6)"}],
        sections=[
            Section(title="What it costs", facts={"training": "60 s, 0.002 USD"}),
            Section(title="How to repeat it", facts={"again": COMMAND}, copied=True),
        ],
    )
    report.print_whole_report(page)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_whole_report_breaks_no_word_and_no_command(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = whole(width, monkeypatch)
    joined = " ".join(text.split())
    for said in ("max_memory", "llama_cpp/", "gguf-Q8_0", "max_loss", "(0.0–0.2)", "[b]?", "[1]"):
        assert said in joined
    assert COMMAND in text.splitlines(), "it is pasted into a shell"
    others = [line for line in text.splitlines() if line != COMMAND]
    assert max(map(len, others)) <= width
    assert text.splitlines()[-2:] == [
        "winner: llama_cpp/gguf-Q8_0",
        "It is the only candidate within the limits.",
    ]


def test_a_piped_report_has_every_rule_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = whole(60, monkeypatch, piped=True).splitlines()
    (rule,) = [line for line in lines if line.startswith("max_loss")]
    assert "(allowed: 0.05)" in rule
    assert rule.endswith("a limit below 0.025")


ROWS = [
    ["shop", "[green]answers[/green]", "a sentence of several words", "http://127.0.0.1:3000"],
    ["another-target", "down", "", "http://127.0.0.1:3001"],
]
COLUMNS = ["target", "health", "remark", "address"]


@pytest.mark.parametrize("width", [20, 40, 60, 66, 80, 200])
def test_no_word_is_broken_or_lost_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = screen(width, monkeypatch)
    terminal.table(COLUMNS, ROWS)
    words = out.getvalue().split()
    for row in [
        [cell.replace("[green]answers[/green]", "answers") for cell in row] for row in ROWS
    ]:
        for word in " ".join(row).split():
            # Of lists the terminal may be narrower than a word: only there it is folded.
            assert word in words or len(word) > width - len("address: ")
    assert max(map(len, out.getvalue().splitlines())) <= width


def test_a_piped_table_has_one_line_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    out = screen(40, monkeypatch, piped=True)
    terminal.table(COLUMNS, ROWS)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "a sentence of several words  http://127.0.0.1:3000" in lines[1]


@pytest.mark.parametrize("width", [20, 40, 60, 100])
def test_of_a_row_in_one_line_what_has_no_room_is_cut_or_follows_below(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = screen(width, monkeypatch)
    rows = [
        ["11-28 16:14:38", "shop 5", "serving", ""],
        ["11-28 16:15:00", "shop 6", "failed", WHY],
    ]
    terminal.table(["when", "version", "outcome", "why"], rows, one_line=True)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    if width >= 60:
        assert lines[2].endswith("…")
        assert len(lines) == 3
    else:
        assert " ".join(WHY.split()) in " ".join(out.getvalue().split())


WHY = (
    "it answers 3 of 16 questions otherwise than when it was weighed: [beyond doubt] worse, it says"
)


def test_figures_are_set_to_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    out = screen(40, monkeypatch)
    terminal.table(["what", "size"], [["a", "1 MiB"], ["b", "100 MiB"]], right=["size"])
    assert out.getvalue().splitlines() == ["what     size", "a       1 MiB", "b     100 MiB"]


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (Step("building llama.cpp", 0.0636364, 1, ""), "  building llama.cpp: 6%"),
        (Step("fine-tuning", 3, 40, "steps"), "  fine-tuning: 3 / 40 steps"),
        (Step("fetching", 1 << 20, 2 << 20, "B"), "  fetching: 1.0 MiB / 2.0 MiB"),
        (Step("starting Bento demo:1", 0, None, ""), "  starting Bento demo:1"),
    ],
)
def test_progress_in_a_log_is_a_line_with_an_amount_people_understand(
    step: Step, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = screen(40, monkeypatch, piped=True)
    monkeypatch.setattr(terminal.time, "monotonic", iter([0.0, 60.0]).__next__)
    with terminal.live_progress(terminal.console):
        steps = terminal.LiveSteps(None, terminal.console)  # type: ignore[arg-type]
        steps(step)
        steps(step)
    assert out.getvalue().splitlines() == [line]
