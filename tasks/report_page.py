"""The report as a page that needs nothing else, and as Markdown for Prefect and MLflow."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.formatting import one_line

TEMPLATES = Path(__file__).parent


class Section(BaseModel):
    """Facts under one title."""

    model_config = ConfigDict(frozen=True)

    title: str
    facts: dict[str, str]
    copied: bool = Field(False, description="Readers copy the facts: they are never wrapped.")


class Page(BaseModel):
    """Everything that a report says, apart from its chart: what each form of it is made from."""

    model_config = ConfigDict(frozen=True)

    name: str
    headline: str = Field(description="`winner: llama_cpp/gguf-Q8_0`, or that there is none.")
    why: str
    decided: bool
    winner: str = ""
    asked: list[Section] = Field(
        default_factory=list, description="What was asked for, and of which data."
    )
    rows: list[dict[str, str]] = Field(
        default_factory=list,
        description="One per candidate, by column title; `verdict` is `winner` or why not.",
    )
    evidence: list[dict[str, str]] = Field(
        default_factory=list, description="The rules that decided, each with its verdict."
    )
    proved: str = Field("", description="What the test rows said of the finalist.")
    changes: list[str] = Field(
        default_factory=list, description="What else would change the decision."
    )
    differing: tuple[str, list[dict[str, str]]] | None = Field(
        None, description="Where finalist and champion differ: a sentence, and rows."
    )
    faults: list[dict[str, str]] = Field(
        default_factory=list, description="How many answers of each candidate have which fault."
    )
    faults_mean: str = ""
    slices: list[dict[str, str]] = Field(default_factory=list)
    notes: dict[str, str] = Field(default_factory=dict, description="Doubts, by candidate.")
    latencies: list[dict[str, str]] = Field(
        default_factory=list, description="Percentiles with their intervals, by candidate."
    )
    engines: list[dict[str, str]] = Field(
        default_factory=list, description="What the engines took, one row per candidate."
    )
    before_after: list[dict[str, str]] = Field(
        default_factory=list, description="Base, fine-tuned and what ships, one per metric."
    )
    sections: list[Section] = Field(
        default_factory=list, description="Costs, how to repeat it, what was weighed and where."
    )

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0]) if self.rows else []

    @property
    def before_after_title(self) -> str:
        if "base" not in self.before_after[0]:
            return "What ships"
        return "Base, fine-tuned and winner" if self.winner else "Base against fine-tuned"


def _interval_apart(text: str) -> tuple[str, str]:
    """Return a score's value, and its interval without the brackets."""
    value, _, interval = text.partition(" (")
    return value, interval.rstrip(")")


def html(page: Page, chart: bytes) -> str:
    """Return the page as one HTML file, its chart, a PNG, inside."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A name that the template misspells is an error, not an empty place on the page.
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["interval_apart"] = _interval_apart
    return environment.get_template("report.html").render(
        page=page, chart=base64.b64encode(chart).decode()
    )


def markdown(page: Page) -> str:
    """Return the page as Markdown, without its chart."""
    parts = [f"# {page.name}: {page.headline}", page.why]
    parts += map(_facts, page.asked)
    if page.rows:
        # The reasons are long, and tables wide: they follow as a list.
        columns = [column for column in page.columns if column != "verdict"]
        rows = [_emphasized(row, columns, page.winner) for row in page.rows]
        parts.append(f"## Candidates\n\n{table(columns, rows)}")
    if others := [row for row in page.rows if row["candidate"] != page.winner]:
        reasons = [f"**{row['candidate']}**: {row['verdict']}" for row in others]
        parts.append(f"## Why not the others\n\n{_list(reasons)}")
    if page.evidence:
        parts.append(f"## What decided\n\n{_list(map(_rule, page.evidence))}")
    if page.proved:
        parts.append(page.proved)
    if page.changes:
        parts.append(f"## What else would change it\n\n{_list(page.changes)}")
    if page.differing:
        said, examples = page.differing
        parts.append(f"## Where finalist and champion differ\n\n{said}")
        if examples:
            parts.append(_table_of(examples))
    if page.faults:
        parts.append(f"## Faults of answers\n\n{_table_of(page.faults)}")
        parts.append(page.faults_mean)
    if page.slices:
        parts.append(f"## By slice\n\n{_table_of(page.slices)}")
    if page.notes:
        doubts = [f"{label}: {note}" for label, note in page.notes.items()]
        parts.append(f"## In doubt\n\n{_list(doubts)}")
    if page.latencies:
        parts.append(f"## Latencies\n\n{_table_of(page.latencies)}")
    if page.engines:
        parts.append(f"## What the engines took\n\n{_table_of(page.engines)}")
    if page.before_after:
        parts.append(f"## {page.before_after_title}\n\n{_table_of(page.before_after)}")
    parts += map(_facts, page.sections)
    return "\n\n".join(parts) + "\n"


def _facts(section: Section) -> str:
    if section.copied:
        lines = "\n\n".join(f"{key}:\n\n    {value}" for key, value in section.facts.items())
    else:
        lines = _list(f"**{key}**: {value}" for key, value in section.facts.items())
    return f"## {section.title}\n\n{lines}"


def _rule(row: Mapping[str, str]) -> str:
    rule, rows, verdict, seen, change = row.values()
    where = "" if rows == "—" else f" ({rows} rows)"
    said = f"**{rule}**{where}: **{verdict}**: {seen}"
    return said if change == "—" else f"{said}; would change it: {change}"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {one_line(line)}" for line in lines)


def _table_of(rows: Sequence[Mapping[str, str]]) -> str:
    return table(list(rows[0]), [list(row.values()) for row in rows])


def _emphasized(row: Mapping[str, str], columns: Sequence[str], winner: str) -> list[str]:
    won = row["candidate"] == winner
    return [f"**{row[name]}**" if won and name == "candidate" else row[name] for name in columns]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, whatever its cells hold."""
    return "\n".join(_line(cells) for cells in [columns, ["---"] * len(columns), *rows])


def _line(cells: Sequence[str]) -> str:
    # A bar would end the cell and a line break the table: reasons may quote an engine's log.
    escaped = (one_line(cell).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
