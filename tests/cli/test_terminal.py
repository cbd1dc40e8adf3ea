"""What the terminal shows of a report."""

import io
import re

import pytest
from rich.console import Console

from weighbridge.cli import terminal
from weighbridge.tasks.report import WeighingReport


def shown(candidates: int, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The report of so many candidates in a terminal of so many columns."""
    rows = [
        {
            "candidate": f"llama_cpp/gguf-Q{number}",
            "exact match": f"0.{number:02} (0.100–0.900)",
            "TTFT p50 / p95": f"{number} ms / 99 ms",
            "verdict": "winner" if number == 0 else "slower",
        }
        for number in range(candidates)
    ]
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, width=width))
    terminal.print_report(
        WeighingReport("reports", "winner: the first", "It is fast.", rows, [], {}, "", "", b"")
    )
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
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


def test_the_reasons_follow_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    tail = shown(2, 80, monkeypatch).splitlines()[-3:]
    assert tail == ["winner: the first", "It is fast.", "not llama_cpp/gguf-Q1: slower"]
