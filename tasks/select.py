"""select: measurements and the champion -> a winner, or none, and why.

Every claim is shown, refuted or undecided, and what is undecided changes nothing.

1. Whoever is shown to break a limit on the validation rows is out.
2. The validation rows choose one finalist, however many candidates there are.
3. The test rows, which no choice was made on, decide about the finalist alone: whether it keeps the
   limits, and whether it takes the champion's place. That is one claim, made at the full level.

Why rows that choose cannot prove: T. Hastie, R. Tibshirani, J. Friedman, The Elements of
Statistical Learning (2009), section 7.2. docs/statistics.md tells the tests.
"""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.errors import GateFailed
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.select_args import Goal, SelectArgs
from weighbridge.tasks.selection.evidence import Evidence
from weighbridge.tasks.selection.finalist import Finalist, choose
from weighbridge.tasks.selection.limits import Limits, Standing
from weighbridge.tasks.selection.objective import Objective, highest_concurrency
from weighbridge.tasks.selection.ruling import Incumbent, Ruling, rule_on, without_finalist
from weighbridge.tasks.statistics.verdict import Verdict

# 2: a reason is given for the champion as well.
# 3: requests and their cost may decide.
# 4: verdicts by intervals; a finalist, chosen on the validation rows, is proved on the test rows.
# 5: single runs decide nothing against repeats.
# 6: no goodput replaces a champion on a machine that did not hold its speed.
VERSION = 6


class Decision(BaseModel):
    """Who wins, and what is to be said of everybody else."""

    model_config = ConfigDict(frozen=True)

    winner: str | None = Field(
        description="Label of the candidate to release; None where nobody is to be."
    )
    keeps_champion: bool = Field(
        description="What serves goes on serving: it is the winner, or nobody beats it."
    )
    why: str = Field(description="One sentence.")
    reasons: dict[str, str] = Field(
        default_factory=dict, description="Why not: by label, all but the winner; the champion too."
    )
    refused: list[str] = Field(
        default_factory=list, description="Labels of those outside the limits."
    )
    notes: dict[str, str] = Field(
        default_factory=dict, description="Doubts about those within the limits, by label."
    )
    metric: str = Field("exact_match", description="Label of the metric that meant quality.")
    objective: Goal = "throughput"
    values: dict[str, float] = Field(
        default_factory=dict, description="The objective's figure, by label."
    )
    concurrency: int | None = Field(None, description="Load at which speed counted.")
    finalist: str | None = Field(
        None, description="Label of the one that the validation rows chose."
    )
    verdict: Verdict = Field(
        "shown", description="On the claim that the finalist is to be released."
    )
    finalist_score: Score | None = Field(
        None,
        description="The finalist's `metric` on the test rows; None where they were not looked at.",
    )
    test_uses: int = Field(
        0, description="How many decisions the test rows have made, this one included."
    )
    evidence: list[Evidence] = Field(
        default_factory=list, description="What the test rows say of the finalist, rule by rule."
    )


def select(
    measurements: Sequence[Measurement],
    reference: Mapping[str, Score],
    champion: Measurement | None,
    args: SelectArgs,
    test_reference: Mapping[str, Score] | None = None,
    unweighed: str = "",
    answer_tokens: Mapping[str, float] | None = None,
) -> Decision:
    """Return the winner among the measured candidates, and why not each of the others.

    Args:
        measurements: of every candidate, on the validation rows and on the test rows.
        reference: scores of the candidates' own unquantized weights on the validation rows.
        champion: how the serving candidate was measured, on the same rows; it is not released
            anew, unless it is one of `measurements`, by artifact and engine.
        args: limits and objective.
        test_reference: as `reference`, on the test rows.
        unweighed: why nothing is known of a champion that there is: then it stays.
        answer_tokens: mean tokens of the unquantized weights' answers, by split.
    """
    limits = Limits(args, answer_tokens or {})
    standings, refused = stand(measurements, reference, limits)
    within = [one for one in measurements if one.candidate.label not in refused]
    incumbent = _incumbent(champion, unweighed, measurements, within, test_reference or {})
    serving = incumbent.measurement if incumbent else None
    challengers = [one for one in within if serving is None or not is_same(one, serving)]
    finalist = choose(challengers, standings, serving, args)
    ruling = (
        rule_on(finalist, incumbent, test_reference or {}, limits)
        if finalist
        else without_finalist(incumbent, bool(measurements))
    )
    return Decision(
        winner=ruling.winner.candidate.label if ruling.winner else None,
        keeps_champion=ruling.keeps_champion,
        why=ruling.why,
        reasons=_reasons(within, finalist, ruling, champion) | refused,
        refused=list(refused),
        notes=_notes(within, standings, finalist, ruling),
        metric=args.metric,
        objective=args.objective,
        values=_values(measurements, args),
        concurrency=args.concurrency or highest_concurrency(measurements),
        finalist=finalist.measurement.candidate.label if finalist else None,
        verdict=ruling.verdict,
        finalist_score=_test_score(finalist, ruling, args),
        evidence=ruling.evidence,
    )


def stand(
    measurements: Sequence[Measurement], reference: Mapping[str, Score], limits: Limits
) -> tuple[dict[str, Standing], dict[str, str]]:
    """Return by label how each candidate stands on the validation rows, and why some are out."""
    standings = {
        measurement.candidate.label: limits.standing(measurement, "validation", reference)
        for measurement in measurements
    }
    refused = {
        label: standing.why
        for label, standing in standings.items()
        if standing.verdict == "refuted" or not (limits.args.on_doubt == "refuse" or standing.seen)
    }
    return standings, refused


def require_winner(decision: Decision) -> None:
    """Stop where nothing is to be released and no champion stays.

    Raises:
        GateFailed: naming each candidate's reason. Not raised when the champion just was not
            beaten.
    """
    if decision.winner is not None or decision.keeps_champion:
        return
    doing, goes_on = "selecting a winner", "nothing was promoted; what serves goes on serving"
    if decision.finalist is None:
        reasons = "; ".join(f"{label}: {decision.reasons[label]}" for label in decision.refused)
        wrong = f"no candidate is within the limits ({reasons or 'none was measured'})"
        raise GateFailed(doing, wrong, goes_on)
    if decision.verdict == "undecided":
        more = "more rows in the test split, a wider limit, or `select.on_doubt: accept` decide it"
        raise GateFailed(doing, decision.why, f"{more}; {goes_on}")
    raise GateFailed(doing, f"no candidate is within the limits ({decision.why})", goes_on)


def is_same(measurement: Measurement, other: Measurement) -> bool:
    """Whether two measurements are of one candidate, whatever options tuning found each time."""
    mine, yours = measurement.candidate, other.candidate
    return (mine.variant.artifact.digest, mine.engine.kind) == (
        yours.variant.artifact.digest,
        yours.engine.kind,
    )


def _incumbent(
    champion: Measurement | None,
    unweighed: str,
    measurements: Sequence[Measurement],
    within: Sequence[Measurement],
    reference: Mapping[str, Score],
) -> Incumbent | None:
    if champion is None:
        return Incumbent(None, unweighed) if unweighed else None
    again = next((one for one in measurements if is_same(one, champion)), None)
    if again is None:
        return Incumbent(champion)
    # Its figures of this weighing where it took part: earlier ones may be of another machine.
    return Incumbent(again, candidate=again if again in within else None, reference=reference)


def _reasons(
    within: Sequence[Measurement],
    finalist: Finalist | None,
    ruling: Ruling,
    champion: Measurement | None,
) -> dict[str, str]:
    """Return why each of those that were not refused does not win, and what becomes of the
    champion.
    """
    reasons = {}
    for measurement in [*within, *([champion] if champion else [])]:
        if measurement == ruling.winner:
            continue
        if champion is not None and is_same(measurement, champion):
            why = _of_the_champion(champion, ruling)
        elif finalist and measurement != finalist.measurement:
            why = finalist.reasons[measurement.candidate.label]
        else:
            why = ruling.why
        reasons[measurement.candidate.label] = why
    return reasons


def _of_the_champion(champion: Measurement, ruling: Ruling) -> str:
    """Return what becomes of the version that serves."""
    if ruling.winner is None:
        return "it goes on serving"
    label = ruling.winner.candidate.label
    if is_same(ruling.winner, champion):
        return f"it is {label}, which wins, and goes on serving"
    return ruling.why.replace("takes the champion's place", "takes its place")


def _notes(
    within: Sequence[Measurement],
    standings: Mapping[str, Standing],
    finalist: Finalist | None,
    ruling: Ruling,
) -> dict[str, str]:
    """Return what is in doubt: of the finalist on the test rows, of the others on validation."""
    notes = {one.candidate.label: standings[one.candidate.label].why for one in within}
    if finalist and ruling.proof:
        notes[finalist.measurement.candidate.label] = ruling.proof.why
    return {label: why for label, why in notes.items() if why}


def _values(measurements: Sequence[Measurement], args: SelectArgs) -> dict[str, float]:
    objective = Objective(args)
    return {
        measurement.candidate.label: value
        for measurement in measurements
        if (value := objective.value(measurement)) is not None
    }


def _test_score(finalist: Finalist | None, ruling: Ruling, args: SelectArgs) -> Score | None:
    if finalist is None or ruling.proof is None:
        return None
    return finalist.measurement.test_scores.get(args.metric)
