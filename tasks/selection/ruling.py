"""What the test rows say of the finalist: it is released, the champion stays, or nobody serves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.selection.evidence import Evidence, reasons
from weighbridge.tasks.selection.finalist import Finalist
from weighbridge.tasks.selection.limits import Limits, Standing
from weighbridge.tasks.selection.replacement import replacement
from weighbridge.tasks.statistics.verdict import Verdict

_DETHRONES: Final = ("floor", "max_loss", "max_nll_increase", "max_memory", "max_size")
"""Rules that put a champion out when they are shown to be broken; one run's speed shows nothing."""


@dataclass(frozen=True)
class Incumbent:
    """The version that serves, and what is known of it."""

    measurement: Measurement | None
    """None where nothing could be weighed."""
    unweighed: str = ""
    """Why there is no measurement."""
    candidate: Measurement | None = None
    """The same, where it is one of the candidates and within the limits."""
    reference: Mapping[str, Score] = field(default_factory=dict)
    """Scores of its own unquantized weights on the test rows; empty where they are another's."""


@dataclass(frozen=True)
class Ruling:
    """Who is released, and why."""

    winner: Measurement | None
    keeps_champion: bool
    why: str
    verdict: Verdict
    """On "the finalist may be released"."""
    proof: Standing | None = None
    """How the finalist stands with the limits on the test rows; None: they were not looked at."""
    evidence: list[Evidence] = field(default_factory=list)


def without_finalist(incumbent: Incumbent | None, measured: bool) -> Ruling:
    """Return what follows where no candidate but the champion may be within the limits."""
    if incumbent and incumbent.candidate:
        label = incumbent.candidate.candidate.label
        why = f"{label} is the only candidate within the limits, and the champion already"
        return Ruling(incumbent.candidate, True, why, "undecided")
    why = "No candidate is within the limits" if measured else "Nothing was measured"
    return Ruling(None, False, why, "refuted")


def rule_on(
    finalist: Finalist, incumbent: Incumbent | None, reference: Mapping[str, Score], limits: Limits
) -> Ruling:
    """Decide about the finalist; `reference` are the scores of its own unquantized weights on the
    test rows.
    """
    if incumbent and finalist.hopeless:
        return _stays(incumbent, f"on the validation rows {finalist.hopeless}", "refuted")
    if incumbent and incumbent.measurement is None:
        return _stays(incumbent, incumbent.unweighed, "undecided")
    label = finalist.measurement.candidate.label
    proof = limits.standing(finalist.measurement, "test", reference)
    if not limits.passes(proof):
        return _not_released(label, proof, incumbent)
    doubt = "; released in doubt (select.on_doubt: accept)" if proof.verdict != "shown" else ""
    if incumbent is None or incumbent.measurement is None:
        kept = "" if doubt else "; the test rows show that it keeps its limits"
        why = f"{finalist.praise}{kept}{doubt}"
        return Ruling(finalist.measurement, False, why, "shown", proof, proof.evidence)
    judged = replacement(incumbent.measurement, finalist.measurement, "test", limits.args)
    evidence = [*proof.evidence, *judged.evidence]
    outside = broken_by(incumbent, limits)
    if judged.verdict == "shown" or outside:
        because = judged.why if judged.verdict == "shown" else outside
        why = f"{label} takes the champion's place: {because}{doubt}"
        return Ruling(finalist.measurement, False, why, "shown", proof, evidence)
    why = f"{label} is not shown to beat it: {judged.why}"
    return _stays(incumbent, why, judged.verdict, proof, evidence)


def broken_by(incumbent: Incumbent, limits: Limits) -> str:
    """Return which limits the champion is shown to break; empty: none is."""
    if incumbent.measurement is None:
        return ""
    standing = limits.standing(incumbent.measurement, "test", incumbent.reference)
    broken = reasons([one for one in standing.evidence if one.rule in _DETHRONES], "refuted")
    return f"the champion is out of the limits: {broken}" if broken else ""


def _not_released(label: str, proof: Standing, incumbent: Incumbent | None) -> Ruling:
    why = f"{label} was chosen, and on the test rows {proof.why}"
    # Whoever is shown to break a limit has failed, whatever serves; a doubt fails nobody.
    if incumbent and (proof.verdict == "undecided" or incumbent.candidate):
        return _stays(incumbent, why, proof.verdict, proof, proof.evidence)
    return Ruling(None, False, why, proof.verdict, proof, proof.evidence)


def _stays(
    incumbent: Incumbent,
    why: str,
    verdict: Verdict,
    proof: Standing | None = None,
    evidence: list[Evidence] | None = None,
) -> Ruling:
    sentence = f"The champion stays: {why}"
    return Ruling(incumbent.candidate, True, sentence, verdict, proof, evidence or [])
