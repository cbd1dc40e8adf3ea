"""What the terminal shows: stages as they finish, progress of the one that runs, tables."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from weighbridge.core.formatting import human_size
from weighbridge.core.progress import Step, listen

if TYPE_CHECKING:
    from weighbridge.flows.plan import Plan

console = Console(highlight=False)
stderr = Console(highlight=False, stderr=True)
GAP = 2
"""Characters between two columns."""
SHORT = 12
"""Characters of a cell that is read as one, such as `31 min 12 s`."""
LONG, FOLDED = 48, 24
"""Characters of a word, such as a digest, that may be folded, and the least width of its column."""
WORTH_READING = 10
"""Characters of a sentence that say something."""


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    right: Sequence[str] = (),
    one_line: bool = False,
) -> None:
    """Print rows under headings; columns named in `right` are figures, and set to the right.

    Nothing is cut off and no word is broken: what does not fit side by side goes over several
    lines, and where even the words don't, each row becomes a list. What is piped is never wrapped.
    With `one_line` a terminal shows of the last cell, which is plain text, what fits beside the
    others; where nothing does, it follows below its row.
    """
    cells = [[Text.from_markup(cell) for cell in row] for row in [columns, *rows]]
    whole, endings = cells, list[str]()
    if one_line:
        cells, endings = _without_endings(cells, rows)
    gap, widths = _layout(cells)
    if title:
        _print(Text(title, style="italic"))
    if widths is None:
        _print_as_lists(whole)
        return
    for text in cells[0]:
        text.stylize("bold")
    for number, row in enumerate(cells):
        for line in _lines(row, widths, [column in right for column in columns], gap):
            _print(line)
        if endings and number and endings[number - 1]:
            console.print(f"  {endings[number - 1]}", markup=False)


def _without_endings(
    cells: list[list[Text]], rows: Sequence[Sequence[str]]
) -> tuple[list[list[Text]], list[str]]:
    """Cut the last cell of each row, plain text, to what a terminal has left beside the others.

    Returns:
        The cells; where too little is left, without the last ones, and those for lines of their
        own.
    """
    endings = [row[-1] for row in rows]
    for row, ending in zip(cells[1:], endings, strict=True):
        row[-1] = Text(ending)
    if not console.is_terminal:
        return cells, []
    others = list(zip(*cells, strict=True))[:-1]
    left = console.width - sum(max(width_of(cell.plain) for cell in one) + GAP for one in others)
    if left < WORTH_READING:
        return [row[:-1] for row in cells], endings
    for *_, last in cells:
        last.truncate(left, overflow="ellipsis")
    return cells, []


def sentence(text: str, style: str = "") -> None:
    """Print prose: between words over several lines in a terminal, as one line where piped."""
    console.print(text, style=style, markup=False, soft_wrap=not console.is_terminal)


def _layout(cells: Sequence[Sequence[Text]]) -> tuple[int, list[int] | None]:
    """Return the gap between columns and their widths: no widths where none will do."""
    room = console.width if console.is_terminal else None
    for gap in (GAP, 1):
        if (widths := _widths(cells, room, gap)) is not None:
            return gap, widths
    return GAP, None


def _widths(cells: Sequence[Sequence[Text]], room: int | None, gap: int) -> list[int] | None:
    """Return the width of each column; None where not even the longest words fit side by side."""
    columns = list(zip(*cells, strict=True))
    widest = [max(width_of(cell.plain) for cell in column) for column in columns]
    if room is None:
        return widest
    free = room - gap * (len(columns) - 1)
    widths = [max(_narrowest(cell.plain) for cell in column) for column in columns]
    if sum(widths) > free:
        return None
    while sum(widths) < free and widths != widest:
        # To the column that would go over the most lines.
        short = [most / max(1, width) for most, width in zip(widest, widths, strict=True)]
        widths[short.index(max(short))] += 1
    return widths


def _narrowest(text: str) -> int:
    """Return the least width of a cell: short ones, such as figures with a unit, stay in one."""
    if width_of(text) <= SHORT:
        return width_of(text)
    words = (cell_len(word) for word in text.split() or [""])
    return max(FOLDED if word > LONG else word for word in words)


def _lines(
    row: Sequence[Text], widths: Sequence[int], right: Sequence[bool], gap: int
) -> Iterator[Text]:
    """Return the lines of one row."""
    wrapped = [
        list(cell.wrap(console, max(1, width))) if cell.plain else []
        for cell, width in zip(row, widths, strict=True)
    ]
    for parts in zip_longest(*wrapped):
        line = Text()
        for part, width, to_the_right in zip(parts, widths, right, strict=False):
            piece = part.copy() if part else Text()
            piece.rstrip()
            piece.align("right" if to_the_right else "left", width)
            line.append_text(piece).append(" " * gap)
        line.rstrip()
        yield line


def _print_as_lists(cells: Sequence[Sequence[Text]]) -> None:
    """Print every row as lines of heading and value."""
    headings, *rows = cells
    for number, row in enumerate(rows):
        if number:
            _print(Text())
        for heading, cell in zip(headings, row, strict=True):
            if cell.plain:
                name = Text(f"{' '.join(heading.plain.split())}: " if heading.plain else "")
                name.stylize("bold")
                console.print(name.append_text(cell), soft_wrap=not console.is_terminal)


def _print(line: Text) -> None:
    # As it is: it was made to fit.
    console.print(line, no_wrap=True, overflow="ignore", crop=False)


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
            amount = f": {shown}" if (shown := _amount(step)) else ""
            self._screen.print(f"  {step.what}{amount}", markup=False, soft_wrap=True)


def _amount(step: Step) -> str:
    if not step.unit:
        return "" if step.total is None else f"{step.done / (step.total or 1):.0%}"
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
    for line in plan.evidence:
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"{human_size(plan.disk_free)} of disk free")


def width_of(column: str | Sequence[str]) -> int:
    cells = [column] if isinstance(column, str) else column
    return max(cell_len(line) for cell in cells for line in cell.splitlines() or [""])
