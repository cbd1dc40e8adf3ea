"""The document of what every engine was seen to do: check by engine and device, from recorded
results alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.conformance.report import ConformanceReport
from weighbridge.core.formatting import one_line

HEAD: Final = """\
# What each engine was seen to do

Written by `weighbridge engines check --all --docs docs`; nothing here is filled in by hand. Each
column is one run of the conformance suite (`conformance/`) on one machine, with the options named
below it. *passed here* is a check that ran and held, with the engine's version and the date;
*known not to* is something the engine does not claim; *not run* says why. The model is a small one
that knows a few answers by heart, and its answers under transformers are the reference.
"""


class MatrixEntry(BaseModel):
    """One engine on one device."""

    model_config = ConfigDict(frozen=True)

    engine: str
    device: str
    report: ConformanceReport | None = None
    why: str = Field("", description="Why there is no report.")


def render(entries: Sequence[MatrixEntry], checks: Sequence[tuple[str, str]]) -> str:
    """Return the document in Markdown; `checks` are names and titles, in order."""
    titles = [f"{entry.engine}, {entry.device}" for entry in entries]
    lines = [HEAD, f"| | {' | '.join(titles)} |", f"| --- |{' --- |' * len(titles)}"]
    for name, title in checks:
        lines.append(f"| {title} | {' | '.join(_cell(entry, name) for entry in entries)} |")
    return "\n".join([*lines, "", "## The runs", "", *_runs(entries, dict(checks))]) + "\n"


def _cell(entry: MatrixEntry, check: str) -> str:
    if entry.report is None:
        return f"not run: {_safe(entry.why)}"
    for outcome in entry.report.outcomes:
        if outcome["check"] == check:
            return _verdict(outcome["verdict"], outcome["why"], entry.report)
    return "not run: the suite had no such check then"


def _verdict(verdict: str, why: str, report: ConformanceReport) -> str:
    if verdict == "passed":
        return f"passed here ({', '.join(report.versions.values()) or 'no version'}, {report.date})"
    return "known not to" if verdict == "known not to" else f"{verdict}: {_safe(why)}"


def _runs(entries: Sequence[MatrixEntry], titles: dict[str, str]) -> Iterator[str]:
    for entry in entries:
        report = entry.report
        if report is None:
            continue
        machine = ", ".join(
            f"{value}" if key != "cores" else f"{value} cores"
            for key, value in report.machine.items()
        )
        options = (
            ", ".join(f"`{name}={value}`" for name, value in report.options.items())
            or "its defaults"
        )
        run = f"{report.summary()}; {report.version()}, {report.date}, {machine}"
        yield f"**{entry.engine}, {entry.device}**: {run}."
        yield f"Options: {options}.\n"
        for outcome in report.outcomes:
            title = titles.get(outcome["check"], outcome["title"])
            yield f"- {title}: {outcome['verdict']}; {_safe(outcome['why'])}"
        yield ""


def _safe(text: str) -> str:
    """Return one line that neither ends a cell nor becomes markup."""
    return one_line(text.replace("|", "\\|").replace("<", "&lt;"))
