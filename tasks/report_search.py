"""What the report says of a search of options: what it came to, and why each setting lost."""

import json
from collections.abc import Mapping
from typing import Any, Final

from weighbridge.core.artifact import Artifact
from weighbridge.core.formatting import one_line
from weighbridge.tasks.search.candidates import SUMMARY
from weighbridge.tasks.search.space import CANDIDATE
from weighbridge.tasks.search.visits import FAILED_AT

MOST_SHOWN: Final = 12
"""Settings of each kind; the others are in the record."""
LONGEST: Final = 240
"""Characters of a reason that are shown: one may quote an engine's log."""


def search_facts(record: Artifact | None) -> dict[str, str]:
    """Return what a search has found, the losers nearest to it, those that failed, and what was
    refused before a start; nothing where there was no search.

    Args:
        record: what the search has left, with its `search.json`.
    """
    if record is None:
        return {}
    summary = json.loads((record.path / SUMMARY).read_text(encoding="utf-8"))
    reasons = {setting_text(json.loads(key)): why for key, why in summary["losers"].items()}
    failed = {label: why for label, why in reasons.items() if why.startswith(FAILED_AT)}
    slower = {label: why for label, why in reasons.items() if label not in failed}
    return {
        "found": summary["why"],
        "the best": setting_text(summary["winner"]),
        **_first(slower, "more that were slower"),
        **_first(failed, "more that failed"),
        **_refused(summary.get("not tried", {})),
    }


def setting_text(setting: Mapping[str, Any]) -> str:
    """Return a setting for people: `llama_cpp/gguf-Q8_0: parallel 8, threads 2`."""
    options = ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in sorted(setting.items())
        if name != CANDIDATE
    )
    return ": ".join(filter(None, [str(setting.get(CANDIDATE, "")), options]))


def _first(reasons: Mapping[str, str], others: str) -> dict[str, str]:
    shown = {label: _short(why) for label, why in list(reasons.items())[:MOST_SHOWN]}
    left = len(reasons) - len(shown)
    record = f"{left}, in search/{SUMMARY} of the weighing's run in MLflow"
    return {**shown, others: record} if left else shown


def _refused(reasons: Mapping[str, str]) -> dict[str, str]:
    """Return each reason once, with the first setting that has it."""
    by_reason: dict[str, list[str]] = {}
    for key, why in reasons.items():
        by_reason.setdefault(why, []).append(key)
    return {
        setting_text(json.loads(keys[0])) + (f" and {len(keys) - 1} more" if keys[1:] else ""): (
            f"not tried: {_short(why)}"
        )
        for why, keys in by_reason.items()
    }


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 2]} …"
