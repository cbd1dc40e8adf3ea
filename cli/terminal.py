"""What the terminal shows: stages as they finish, progress of the one that runs, tables."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from weighbridge.core.formatting import human_size
from weighbridge.core.progress import Step, listen

if TYPE_CHECKING:
    from weighbridge.flows.plan import Plan
    from weighbridge.tasks.report import WeighingReport

console = Console(highlight=False)
stderr = Console(highlight=False, stderr=True)
GAP = 2
"""Characters between two columns."""
LONGEST_LINE = 1000
"""Characters of a line that is read by a program."""


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    right: Sequence[str] = (),
    one_line: bool = False,
) -> None:
    """Print rows under headings; columns named in `right` are figures, and set to the right.

    With `one_line` a row never takes a second line: a terminal shows of its last cell what fits,
    a file or pipe gets all of it.
    """
    grid = Table(
        title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False
    )
    for column in columns:
        # Folded, not cut: what is left out of a name or figure is what somebody came for.
        grid.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=one_line and column != columns[-1],
        )
    for *cells, last in rows:
        ending = Text(last, no_wrap=True, overflow="ellipsis") if one_line else last
        grid.add_row(*cells, ending)
    is_read_by_program = one_line and not console.is_terminal
    (Console(highlight=False, width=LONGEST_LINE) if is_read_by_program else console).print(grid)


class LiveSteps:
    """Shows progress as bars, and as plain lines where there is no terminal."""

    def __init__(self, progress: Progress, screen: Console) -> None:
        self._progress = progress
        self._screen = screen
        self._tasks: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}

    def __call__(self, step: Step) -> None:
        if not self._screen.is_terminal:
            self._plain(step)
            return
        if step.what not in self._tasks:
            self._tasks[step.what] = self._progress.add_task(step.what, total=step.total, unit="")
        task = self._tasks[step.what]
        self._progress.update(task, completed=step.done, total=step.total, unit=_amount(step))
        if step.total is not None and step.done >= step.total:
            # Work of the same name may begin again, with a bar of its own.
            self._progress.remove_task(task)
            del self._tasks[step.what]

    def _plain(self, step: Step) -> None:
        """Print at most a line every ten seconds, for logs."""
        now = time.monotonic()
        # The first line waits as long as the others: short work leaves none.
        if now - self._last_line.setdefault(step.what, now) >= 10:
            self._last_line[step.what] = now
            self._screen.print(f"  {step.what}: {_amount(step)}")


def _amount(step: Step) -> str:
    if step.unit == "B":
        done, total = human_size(step.done), human_size(step.total) if step.total else ""
    else:
        done, total = f"{step.done:g}", f"{step.total:g} {step.unit}" if step.total else step.unit
    return f"{done} / {total}" if step.total else f"{done} {total}"


@contextmanager
def live_progress(screen: Console = console) -> Iterator[None]:
    """Show progress, and what our own code logs, while the block runs."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
    )
    logger = logging.getLogger("weighbridge")
    # On the same screen as the bars: lines written past them would tear them.
    handler = _Lines(screen)
    with Progress(
        *columns, console=screen, transient=True, disable=not screen.is_terminal
    ) as progress:
        logger.addHandler(handler)
        try:
            with listen(LiveSteps(progress, screen)):
                yield
        finally:
            logger.removeHandler(handler)


class _Lines(logging.Handler):
    """Prints log lines: those of a stage stand out, what happens within one is indented.

    Errors are left out, since `main` prints the one that ends the program.
    """

    def __init__(self, screen: Console) -> None:
        super().__init__(logging.INFO)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            return
        text = record.getMessage()
        if stage := getattr(record, "stage", ""):
            self._screen.print(
                f"[bold green]✓[/bold green] [bold]{stage:<10}[/bold] {escape(text)}",
                soft_wrap=True,
            )
        else:
            style = "yellow" if record.levelno >= logging.WARNING else "dim"
            self._screen.print(f"  {text}", style=style, markup=False, soft_wrap=True)


def print_plan(plan: "Plan") -> None:
    """Print the plan as a table, and the room on the disk."""
    colours = {"reuse": "green", "run": "yellow", "wait": "dim"}
    rows = [
        [
            stage.stage,
            f"[{colours[stage.action]}]{stage.action}[/{colours[stage.action]}]",
            escape(stage.why),
            escape("; ".join(stage.needs)),
        ]
        for stage in plan.stages
    ]
    table(["stage", "action", "why", "needs"], rows)
    console.print(f"{human_size(plan.disk_free)} of disk free")


def print_report(report: "WeighingReport") -> None:
    """Print the report: base against fine-tuned, every candidate, and why not the others."""
    if report.before_after:
        columns = list(report.before_after[0])
        table(columns, [list(row.values()) for row in report.before_after])
        console.print()
    # One column per candidate: their names and figures are long, and a terminal is narrow.
    titles = [title for title in report.rows[0] if title not in ("candidate", "verdict")]
    headings = ["", *(title.replace(" / ", "/") for title in titles)]
    candidates = [
        [
            row["candidate"].replace("/", "/\n"),
            *(row[title].replace(" (", "\n(") for title in titles),
        ]
        for row in report.rows
    ]
    for group in _that_fit_beside(headings, candidates):
        labels, *figures = zip(headings, *group, strict=True)
        table(labels, figures, right=labels[1:])
        console.print()
    console.print(
        f"[bold green]{escape(report.headline)}[/bold green]\n{escape(report.why)}", soft_wrap=True
    )
    for row in report.rows:
        if row["verdict"] != "winner":
            console.print(
                f"not {escape(row['candidate'])}: {escape(row['verdict'])}", soft_wrap=True
            )


def _that_fit_beside(
    headings: Sequence[str], columns: Sequence[Sequence[str]]
) -> Iterator[list[Sequence[str]]]:
    """Return the columns in groups: as many as fit beside the headings, one at least."""
    room = console.width - _width(headings)
    group: list[Sequence[str]] = []
    for column in columns:
        if group and sum(_width(each) + GAP for each in [*group, column]) > room:
            yield group
            group = []
        group.append(column)
    yield group


def _width(column: Sequence[str]) -> int:
    return max(cell_len(line) for cell in column for line in cell.splitlines() or [""])
