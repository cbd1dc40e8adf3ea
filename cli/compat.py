"""The command that looks ahead: compat."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from weighbridge.compat.report import CompatReport

COLORS = {
    "breaks": "red",
    "broken already": "red",
    "held back": "yellow",
    "not run": "yellow",
    "nothing breaks": "green",
}


@click.command()
@click.argument("environments", nargs=-1)
@click.option(
    "--only",
    multiple=True,
    metavar="PACKAGE",
    help="Move this one alone, with what it needs; repeatable.",
)
@click.option(
    "--with-torch",
    is_flag=True,
    help="Lift PyTorch as well: on most machines gigabytes of CUDA libraries.",
)
@click.option(
    "--resolve", "resolve", is_flag=True, help="Resolve alone: install nothing, run nothing."
)
@click.option("--timeout", default=900.0, show_default=True, help="Seconds one contract may take.")
@click.option("--minutes", default=60.0, show_default=True, help="After them nothing new is begun.")
@click.option(
    "--markdown",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the text for an issue here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compat(
    environments: tuple[str, ...],
    only: tuple[str, ...],
    with_torch: bool,
    resolve: bool,
    timeout: float,
    minutes: float,
    markdown: Path | None,
    as_json: bool,
) -> None:
    """Say what the newest release of every dependency would break, and at which package.

    The control plane and every engine's and optimizer's environment (or ENVIRONMENTS) are resolved
    without our upper bounds and installed in throw-away environments, where the contracts of this
    tree are run: what we import and call. Nothing of yours changes. Ends with 3 when something
    would break, with 4 when the package index cannot be reached.
    """
    from weighbridge.cli.terminal import live_progress, stderr
    from weighbridge.compat.check import Options, check
    from weighbridge.compat.locked_environments import locked_environments
    from weighbridge.core.errors import GateFailed
    from weighbridge.core.settings import Settings

    options = Options(only, with_torch, timeout, minutes, run=not resolve)
    with live_progress(stderr):
        report = check(locked_environments(environments), options, Settings().cache)
    if markdown:
        markdown.write_text(report.markdown(), encoding="utf-8")
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        _print(report)
    if report.breaks:
        # After the report: a script has both, the JSON and the exit code.
        raise GateFailed("checking the newest releases", report.headline())


def _print(report: "CompatReport") -> None:
    from rich.markup import escape

    from weighbridge.cli.terminal import console, table

    if rows := report.rows():
        cells = [[_cell(key, escape(text)) for key, text in row.items()] for row in rows]
        table(list(rows[0]), cells)
    console.print(
        f"{report.at}, Python {report.python}. {report.pytorch}", style="dim", soft_wrap=True
    )


def _cell(column: str, text: str) -> str:
    color = next(
        (
            color
            for verdict, color in COLORS.items()
            if column == "verdict" and text.startswith(verdict)
        ),
        "",
    )
    return f"[{color}]{text}[/{color}]" if color else text
