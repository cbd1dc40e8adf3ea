"""Sections of the report on quality beside the metrics: faults of answers, and slices."""

from collections.abc import Mapping, Sequence
from typing import Final

from weighbridge.core.formatting import UNKNOWN
from weighbridge.tasks.answer_faults import FAULTS
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.report_chart import title_of
from weighbridge.tasks.slices import by_slice

MOST: Final = 4
"""Candidates whose slices are shown: as many as a page has room for."""
TEST_ROWS: Final = ", test rows"


def fault_rows(measurements: Sequence[Measurement], finalist: str | None) -> list[dict[str, str]]:
    """Return how many answers of each candidate have which fault: on the validation rows, of the
    finalist on the test rows as well.
    """
    rows = []
    for measurement in measurements:
        label = measurement.candidate.label
        counted = {label: measurement.faults.get("validation", {})}
        if label == finalist:
            counted[f"{label}{TEST_ROWS}"] = measurement.faults.get("test", {})
        rows += [_fault_row(name, scores) for name, scores in counted.items() if scores]
    seen = [fault for fault in FAULTS if any(row[fault] != UNKNOWN for row in rows)]
    return [{name: row[name] for name in ("candidate", *seen)} for row in rows]


def _fault_row(name: str, scores: Mapping[str, Score]) -> dict[str, str]:
    return {
        "candidate": name,
        **{fault: _counted(scores[fault]) if fault in scores else UNKNOWN for fault in FAULTS},
    }


def _counted(score: Score) -> str:
    many = sum(map(bool, score.per_example))
    return f"{many:,} of {len(score.per_example):,} ({score.low:.3f}–{score.high:.3f})"


def what_is_counted(measurements: Sequence[Measurement]) -> str:
    """Return what each fault means, and why some were not counted; empty where none were."""
    counted = {fault for one in measurements for split in one.faults.values() for fault in split}
    meaning = [f"{fault}: {words}" for fault, words in FAULTS.items() if fault in counted]
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in measurements:
        for name, why in one.uncounted.items():
            if name not in FAULTS:
                continue
            reasons.setdefault((name, why), []).append(one.candidate.label)
    missing = [
        f"{name} is not told of {_all_or(labels, measurements)}: {why}"
        for (name, why), labels in reasons.items()
    ]
    return f"{'; '.join([*meaning, *missing])}." if counted else ""


def _all_or(labels: Sequence[str], measurements: Sequence[Measurement]) -> str:
    measured = sum(bool(one.faults) for one in measurements)
    return "any candidate" if len(labels) == measured else ", ".join(labels)


def slice_rows(
    measurements: Sequence[Measurement], metric: str, finalist: str | None
) -> list[dict[str, str]]:
    """Return each slice of the validation rows with every candidate's score, and the finalist's on
    the test rows.
    """
    scores: dict[str, dict[str, Score]] = {}
    for measurement in [one for one in measurements if one.slices][:MOST]:
        label = measurement.candidate.label
        scores[label] = _sliced(measurement, metric, "validation")
        if label == finalist:
            scores[f"{label}{TEST_ROWS}"] = _sliced(measurement, metric, "test")
    names = sorted({name for sliced in scores.values() for name in sliced})
    faults = _faults_by_slice(measurements, finalist)
    return [
        {
            "slice": name,
            **{
                f"{title_of(metric)}, {label}": _with_rows(sliced.get(name))
                for label, sliced in scores.items()
            },
            **({f"faults, {finalist}": faults.get(name, "none")} if faults else {}),
        }
        for name in names
    ]


def _with_rows(score: Score | None) -> str:
    if score is None:
        return UNKNOWN
    value, _, interval = str(score).partition(" (")
    return f"{value} of {len(score.per_example):,}" + (f" ({interval}" if interval else "")


def _sliced(measurement: Measurement, metric: str, split: str) -> dict[str, Score]:
    scores = measurement.scores if split == "validation" else measurement.test_scores
    score = scores.get(metric)
    return by_slice(score, measurement.slices.get(split, {})) if score else {}


def _faults_by_slice(measurements: Sequence[Measurement], finalist: str | None) -> dict[str, str]:
    """Return the finalist's faults on the validation rows by slice: `truncated 3, empty 1`."""
    chosen = next((one for one in measurements if one.candidate.label == finalist), None)
    if chosen is None:
        return {}
    found: dict[str, list[str]] = {}
    for fault, score in chosen.faults.get("validation", {}).items():
        for name, part in by_slice(score, chosen.slices.get("validation", {})).items():
            if many := sum(map(bool, part.per_example)):
                found.setdefault(name, []).append(f"{fault} {many:,}")
    return {name: ", ".join(faults) for name, faults in found.items()}


def score_notes(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Return what is to be known of how scores were taken, of the first candidate that has them."""
    notes: dict[str, str] = {}
    for measurement in measurements:
        for label, score in measurement.scores.items():
            if score.notes:
                said = f"{measurement.candidate.label}: {'; '.join(score.notes)}"
                notes.setdefault(title_of(label), said)
    return notes
