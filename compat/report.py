"""What a check found: as data, as the rows of a table, and as Markdown that can be pasted into an
issue.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LONGEST_IN_ROW = 160
"""Characters of an error that fit into a row; the whole of it stands below the table."""

BAD = ("breaks", "broken already")
"""Kinds of findings with which the newest releases cannot be taken."""


class ContractResult(BaseModel):
    """One contract, run once."""

    model_config = ConfigDict(frozen=True)

    contract: str
    holds: bool
    error: str = Field("", description="The last line of the traceback.")
    seconds: float
    versions: str = Field("everything at its newest", description="What was installed when it ran.")


class Change(BaseModel):
    """A package that has a newer release than the lock."""

    model_config = ConfigDict(frozen=True)

    package: str
    locked: str = Field(description="Empty: it was not needed before.")
    newest: str = Field(description="Empty: it is not needed any more.")
    direct: bool
    bounds: str = Field(
        "", description="What we ask of its version and keeps the newest out: `<0.151`."
    )


class Finding(BaseModel):
    """Something that stands in the way of the newest releases."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["breaks", "held back", "broken already", "not run"]
    packages: dict[str, tuple[str, str]] = Field(
        description="Package to version now and version then."
    )
    contract: str = ""
    why: str
    with_it: dict[str, tuple[str, str]] = Field(
        default_factory=dict,
        description="What had to move along with the packages, in the trial that shows it.",
    )

    def named(self) -> str:
        """Return a package with both of its versions: `fastapi 0.150.0 → 0.165.0`."""
        return ", ".join(
            f"{name} {before or '(new)'} → {after}"
            for name, (before, after) in self.packages.items()
        )


class CheckedEnvironment(BaseModel):
    """One environment."""

    model_config = ConfigDict(frozen=True)

    environment: str
    state: str = Field(description="`checked`, `as locked`, or why it was not checked.")
    changes: list[Change] = []
    results: list[ContractResult] = Field(
        [], description="Every contract with everything at its newest."
    )
    findings: list[Finding] = []
    seconds: float = 0.0


class CompatReport(BaseModel):
    """The whole check."""

    model_config = ConfigDict(frozen=True)

    at: str = Field(description="UTC.")
    python: str
    machine: str
    pytorch: str = Field(description="Whether PyTorch was kept as locked.")
    environments: list[CheckedEnvironment]

    @property
    def breaks(self) -> list[tuple[str, Finding]]:
        """Return what would break, or cannot be told because it is broken already."""
        return [
            (checked.environment, finding)
            for checked in self.environments
            for finding in checked.findings
            if finding.kind in BAD
        ]

    def headline(self) -> str:
        """Return in one line whether anything would break, and what."""
        if not self.breaks:
            return "nothing would break"
        clauses = [
            f"{group[0].named() or checked.environment} {group[0].kind} {_quoted(group)} "
            f"({checked.environment})"
            for checked in self.environments
            for group in _groups(checked.findings)
            if group[0].kind in BAD
        ]
        return "; ".join(clauses)

    def rows(self) -> list[dict[str, str]]:
        """Return one row per direct dependency with a newer release, per finding, and per
        environment without either.
        """
        return [row for checked in self.environments for row in _rows(checked)]

    def markdown(self) -> str:
        """Return the text for an issue: what breaks at the top, everything else below."""
        lines = [f"# Newest releases: {self.headline()}", ""]
        lines += [f"{self.at}, Python {self.python}, {self.machine}. {self.pytorch}", ""]
        for environment, finding in self.breaks:
            lines += _issue(environment, finding)
        lines += ["## Every environment", "", *_table(self.rows()), ""]
        for checked in self.environments:
            lines += _contracts(checked)
        return "\n".join(lines).rstrip() + "\n"


def _rows(checked: CheckedEnvironment) -> list[dict[str, str]]:
    rows = [_findings_row(checked.environment, group) for group in _groups(checked.findings)]
    named_packages = {name for finding in checked.findings for name in finding.packages}
    other_changes = [
        change
        for change in checked.changes
        if change.direct and change.package not in named_packages
    ]
    rows += [_change_row(checked, change) for change in other_changes]
    if not rows:
        return [_row(checked.environment, "", "", "", checked.state, "")]
    indirect = [
        change
        for change in checked.changes
        if not change.direct and change.package not in named_packages
    ]
    if indirect:
        names = ", ".join(change.package for change in indirect)
        rows.append(
            _row(checked.environment, f"{len(indirect)} indirect", "", "", _fine(checked), names)
        )
    return rows


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Group findings of one kind about the same packages."""
    groups: dict[tuple[str, tuple[str, ...]], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.kind, tuple(finding.packages)), []).append(finding)
    return list(groups.values())


def _quoted(group: Sequence[Finding]) -> str:
    return ", ".join(f"'{finding.contract}'" for finding in group)


def _findings_row(environment: str, group: Sequence[Finding]) -> dict[str, str]:
    first = group[0]
    before, after = (
        ", ".join(version[index] for version in first.packages.values()) for index in (0, 1)
    )
    verdict = f"{first.kind} {_quoted(group)}" if first.kind in BAD else first.kind
    why = "; ".join(dict.fromkeys(finding.why for finding in group))
    return _row(environment, ", ".join(first.packages), before, after, verdict, why)


def _change_row(checked: CheckedEnvironment, change: Change) -> dict[str, str]:
    note = f"kept out by our own {change.bounds}" if change.bounds else ""
    return _row(
        checked.environment, change.package, change.locked, change.newest, _fine(checked), note
    )


def _fine(checked: CheckedEnvironment) -> str:
    """Return what to say of a package that no finding names: it means something only where
    contracts were run.
    """
    ran = bool(checked.results) and not any(
        finding.kind == "not run" for finding in checked.findings
    )
    return "nothing breaks" if ran else "resolves; no contract run"


def _row(
    environment: str, package: str, locked: str, newest: str, verdict: str, why: str
) -> dict[str, str]:
    # A resolver's reason may be a page long.
    short = why if len(why) <= LONGEST_IN_ROW else f"{why[:LONGEST_IN_ROW]}…"
    return {
        "environment": environment,
        "package": package,
        "locked": locked,
        "newest": newest,
        "verdict": verdict,
        "why": short,
    }


def _table(rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return ["nothing was checked"]
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    return lines + [
        "| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _issue(environment: str, finding: Finding) -> list[str]:
    along = ", ".join(
        f"{name} {before or '(new)'} → {after or '(gone)'}"
        for name, (before, after) in finding.with_it.items()
    )
    packages = finding.named() or environment
    return [
        f"## {packages}: {finding.kind} “{finding.contract}” in {environment}",
        "",
        "```",
        finding.why,
        "```",
        "",
        *([f"Moved along with it: {along}.", ""] if along else []),
    ]


def _contracts(checked: CheckedEnvironment) -> list[str]:
    if not checked.results:
        return []
    lines: list[str] = []
    for versions in dict.fromkeys(result.versions for result in checked.results):
        ran = [result for result in checked.results if result.versions == versions]
        lines += [f"{checked.environment}, {versions}:", "", *map(_result, ran), ""]
    return lines


def _result(result: ContractResult) -> str:
    return (
        f"- {result.contract}: {'holds' if result.holds else result.error} ({result.seconds:.1f} s)"
    )
