"""What the terminal shows of a weighing's report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from weighbridge.cli import terminal
from weighbridge.cli.terminal import GAP, sentence, table, width_of

if TYPE_CHECKING:
    from weighbridge.tasks.report_page import Page, Section


def print_report(report: "Page") -> None:
    """Print the short report: base, fine-tuned and winner, every candidate, why not the others."""
    if report.before_after:
        _rows(report.before_after)
    _candidates(report)
    _verdict(report)


def print_whole_report(report: "Page") -> None:
    """Print everything that the report says; the verdict last, where a terminal is read first."""
    for section in report.asked:
        _section(section)
    if report.rows:
        _heading("Candidates")
        _candidates(report)
    _answers(report)
    _titled("Latencies", report.latencies)
    _titled("What the engines took", report.engines)
    _decision(report)
    for section in report.sections:
        _section(section)
    _verdict(report)


def _answers(report: "Page") -> None:
    """Print what is told of the answers: scores, where two models differ, faults, slices."""
    if report.before_after:
        _titled(report.before_after_title, report.before_after)
    if report.differing:
        said, examples = report.differing
        _heading("Where finalist and champion differ")
        sentence(said)
        _rows(examples)
    if report.faults:
        _titled("Faults of answers", report.faults)
        sentence(report.faults_mean)
        terminal.console.print()
    _titled("By slice", report.slices)


def _decision(report: "Page") -> None:
    """Print the verdict on each rule, and what would change the decision."""
    _titled("What decided", [_rule(row) for row in report.evidence])
    if report.proved:
        sentence(report.proved)
        terminal.console.print()
    if report.changes:
        _heading("What else would change it")
        for change in report.changes:
            sentence(change)
        terminal.console.print()


def _candidates(report: "Page") -> None:
    # One column per candidate: their names and figures are long, and a terminal is narrow.
    titles = [
        title
        for title in (report.rows[0] if report.rows else ())
        if title not in ("candidate", "verdict")
    ]
    headings = ["", *(title.replace(" / ", "/") for title in titles)]
    candidates = [
        [
            row["candidate"].replace("/", "/\n").replace(" (", "\n("),
            *(row[title].replace(" (", "\n(") for title in titles),
        ]
        for row in report.rows
    ]
    for group in _that_fit_beside(headings, candidates):
        labels, *figures = zip(headings, *group, strict=True)
        escaped = [[escape(cell) for cell in row] for row in figures]
        table([escape(label) for label in labels], escaped, right=labels[1:])
        terminal.console.print()


def _verdict(report: "Page") -> None:
    sentence(report.headline, style="bold green")
    sentence(report.why)
    for row in report.rows:
        if row["verdict"] != "winner":
            sentence(f"{row['candidate']}: {row['verdict']}")
    for label, doubt in report.notes.items():
        sentence(f"in doubt: {label}: {doubt}")


def _rule(row: Mapping[str, str]) -> dict[str, str]:
    """Return a rule in three cells: five leave each a column of single words."""
    rule, rows, verdict, seen, change = row.values()
    return {
        "rule": rule if rows == "—" else f"{rule} ({rows})",
        "verdict": verdict,
        "what was seen": seen if change == "—" else f"{seen}; would change it: {change}",
    }


def _section(section: "Section") -> None:
    _heading(section.title)
    if section.copied:
        for key, value in section.facts.items():
            sentence(f"{key}:")
            terminal.console.print(value, markup=False, soft_wrap=True)
        terminal.console.print()
        return
    table(["", ""], [[escape(key), escape(value)] for key, value in section.facts.items()])
    terminal.console.print()


def _heading(title: str) -> None:
    terminal.console.print(title, style="bold", markup=False)


def _titled(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    if rows:
        _heading(title)
        _rows(rows)


def _rows(rows: Sequence[Mapping[str, str]]) -> None:
    if rows:
        table(list(rows[0]), [[escape(cell) for cell in row.values()] for row in rows])
        terminal.console.print()


def _that_fit_beside(
    headings: Sequence[str], columns: Sequence[Sequence[str]]
) -> Iterator[list[Sequence[str]]]:
    """Return the columns in groups: as many as fit beside the headings, one at least."""
    room = terminal.console.width - width_of(headings)
    group: list[Sequence[str]] = []
    for column in columns:
        # What is piped is read by programs and searched: one table, however wide.
        if (
            group
            and terminal.console.is_terminal
            and sum(width_of(each) + GAP for each in [*group, column]) > room
        ):
            yield group
            group = []
        group.append(column)
    yield group
