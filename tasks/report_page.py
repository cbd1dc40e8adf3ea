"""The report as a page that needs nothing else, and as Markdown for Prefect and MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """What the templates see."""

    name: str
    headline: str
    why: str
    decided: bool
    rows: list[dict[str, str]]
    columns: list[str]
    before_after: list[dict[str, str]]
    facts: dict[str, str]
    notes: dict[str, str]
    winner: str
    evidence: list[dict[str, str]]
    proved: str
    """What the test rows said of the finalist."""
    differing: tuple[str, list[dict[str, str]]] | None
    """Where finalist and champion differ: a sentence, and rows."""
    engines: list[dict[str, str]] = field(default_factory=list)
    """What the engines took, one row per candidate."""
    faults: list[dict[str, str]] = field(default_factory=list)
    """How many answers of each candidate have which fault."""
    faults_mean: str = ""
    slices: list[dict[str, str]] = field(default_factory=list)
    chart: str = field(default="", repr=False)

    @property
    def before_after_title(self) -> str:
        if "base" not in self.before_after[0]:
            return "What ships"
        return "Base, fine-tuned and winner" if self.winner else "Base against fine-tuned"


def _interval_apart(text: str) -> tuple[str, str]:
    """Return a score's value, and its interval without the brackets."""
    value, _, interval = text.partition(" (")
    return value, interval.rstrip(")")


def html(page: Page) -> str:
    """Return the page as one HTML file, its chart inside."""
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
    return environment.get_template("report.html").render(page=page)


def markdown(page: Page) -> str:
    """Return the page as Markdown, without its chart."""
    parts = [f"# {page.name}: {page.headline}", page.why]
    if page.rows:
        parts.append(table(page.columns, [_emphasized(row, page.winner) for row in page.rows]))
    if page.evidence:
        rows = [list(row.values()) for row in page.evidence]
        parts.append(f"## What decided\n\n{table(list(page.evidence[0]), rows)}")
    if page.proved:
        parts.append(page.proved)
    if page.differing:
        said, examples = page.differing
        parts.append(f"## Where finalist and champion differ\n\n{said}")
        if examples:
            parts.append(table(list(examples[0]), [list(row.values()) for row in examples]))
    if page.faults:
        rows = [list(row.values()) for row in page.faults]
        parts.append(f"## Faults of answers\n\n{table(list(page.faults[0]), rows)}")
        parts.append(page.faults_mean)
    if page.slices:
        rows = [list(row.values()) for row in page.slices]
        parts.append(f"## By slice\n\n{table(list(page.slices[0]), rows)}")
    if page.notes:
        doubts = "\n".join(f"- {label}: {note}" for label, note in page.notes.items())
        parts.append(f"## In doubt\n\n{doubts}")
    if page.engines:
        rows = [list(row.values()) for row in page.engines]
        parts.append(f"## What the engines took\n\n{table(list(page.engines[0]), rows)}")
    if page.before_after:
        rows = [list(row.values()) for row in page.before_after]
        parts.append(f"## {page.before_after_title}\n\n{table(list(page.before_after[0]), rows)}")
    if page.facts:
        parts.append(
            "## What was weighed, and "
            f"where\n\n{table(['', ''], [list(fact) for fact in page.facts.items()])}"
        )
    return "\n\n".join(parts) + "\n"


def _emphasized(row: Mapping[str, str], winner: str) -> list[str]:
    bold = {"candidate", "verdict"} if row["candidate"] == winner else set()
    return [f"**{value}**" if column in bold else value for column, value in row.items()]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, whatever its cells hold."""
    return "\n".join(_line(cells) for cells in [columns, ["---"] * len(columns), *rows])


def _line(cells: Sequence[str]) -> str:
    # A bar would end the cell and a line break the table: reasons may quote an engine's log.
    escaped = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
