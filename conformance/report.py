"""The result of a run of the suite, kept as JSON: one file per engine and device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.environments import locks_of
from weighbridge.core.files import replace_text
from weighbridge.serving.engines.base import Engine


class ConformanceReport(BaseModel):
    """One run of the suite."""

    model_config = ConfigDict(frozen=True)

    engine: str
    device: str
    options: dict[str, Any] = Field(description="Options of the engine that were given.")
    versions: dict[str, str] = Field(description="Packages of the engine, as its lock names them.")
    machine: dict[str, str]
    date: str
    seconds: float
    outcomes: list[dict[str, Any]]

    @property
    def failed(self) -> list[str]:
        """Return the names of the checks that failed."""
        return [outcome["check"] for outcome in self.outcomes if outcome["verdict"] == "failed"]

    def count(self, verdict: str) -> int:
        return sum(outcome["verdict"] == verdict for outcome in self.outcomes)

    def summary(self) -> str:
        """Return how often each verdict was given, in one line."""
        verdicts = ("passed", "failed", "known not to", "not run")
        return ", ".join(
            f"{self.count(verdict)} {verdict}" for verdict in verdicts if self.count(verdict)
        )

    def version(self) -> str:
        """Return the engine's version for people."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    def keep(self, home: Path) -> Path:
        """Write it where `kept` finds it."""
        path = _path(home, self.engine, self.device)
        replace_text(path, self.model_dump_json(indent=1) + "\n")
        return path


def kept(home: Path, engine: str, device: str) -> ConformanceReport | None:
    """Return the last report of an engine on a device; None where there is none to read."""
    try:
        return ConformanceReport.model_validate_json(_path(home, engine, device).read_bytes())
    except (OSError, ValueError):
        return None


def versions(engine: Engine) -> dict[str, str]:
    """Return the versions of the packages that an engine is made of, out of its lock."""
    # An engine may have no environment for what this machine has.
    if engine.device() not in engine.locks:
        return {}
    text = "".join(path.read_text() for path in locks_of(engine.lock()))
    pinned = dict(
        re.findall(r"^([a-z0-9._-]+)(?:\[[a-z0-9,-]+\])?==([^ ;\\\n]+)", text, re.MULTILINE)
    )
    return {name: pinned[name] for name in engine.packages if name in pinned}


def _path(home: Path, engine: str, device: str) -> Path:
    return home / "engines" / f"{engine}-{device}.json"
