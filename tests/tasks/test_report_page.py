"""Whatever a report says is in every form of it."""

import pytest

from weighbridge.tasks.report_page import Page, Section, html, markdown

WHOLE = Page(
    name="demo",
    headline="winner: llama_cpp/a",
    why="why-mark",
    decided=True,
    winner="llama_cpp/a",
    asked=[Section(title="What was asked", facts={"limits": "asked-mark"})],
    rows=[
        {"candidate": "llama_cpp/a", "NLL": "figure-mark (0.1–interval-mark)", "verdict": "winner"},
        {"candidate": "llama_cpp/b", "NLL": "0.2", "verdict": "verdict-mark"},
    ],
    evidence=[
        {
            "rule": "rule-mark",
            "rows": "test",
            "verdict": "shown",
            "what was seen": "seen-mark",
            "what would change it": "turns-mark",
        }
    ],
    proved="proved-mark",
    changes=["changes-mark"],
    differing=("differing-mark", [{"prompt": "example-mark"}]),
    faults=[{"candidate": "a", "empty": "fault-mark"}],
    faults_mean="fault-meant-mark",
    slices=[{"slice": "slice-mark"}],
    notes={"llama_cpp/a": "note-mark"},
    latencies=[{"candidate": "a", "p95": "latency-mark"}],
    engines=[{"candidate": "a", "CPU": "engine-mark"}],
    before_after=[{"metric": "NLL", "base": "base-mark"}],
    sections=[
        Section(title="What it costs", facts={"price": "cost-mark"}),
        Section(title="How to repeat it", facts={"again": "command-mark"}, copied=True),
    ],
)
"""A page with something in every part of it."""


def missing(text: str) -> set[str]:
    """What the page says and a text does not."""
    words = WHOLE.model_dump_json().replace('"', " ").replace(")", " ").replace("–", " ").split()
    return {word for word in words if word.endswith("-mark") and word not in text}


def test_there_is_something_in_every_part_of_the_page() -> None:
    assert not [name for name in Page.model_fields if not getattr(WHOLE, name)]


@pytest.mark.parametrize("form", [markdown, lambda page: html(page, b"")], ids=["md", "html"])
def test_every_part_is_in_the_form(form: object) -> None:
    assert callable(form)
    assert not missing(form(WHOLE))
