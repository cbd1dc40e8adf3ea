"""select: measurements and the champion -> a winner, or none, and why.

Limits come first: whoever breaks one is out. Among the others the objective decides. The champion
keeps its place unless it breaks a limit itself, or somebody is better than it beyond doubt in
quality, or by `min_improvement` in the objective without losing quality.
"""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.errors import GateFailed
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.select_args import Goal, SelectArgs
from weighbridge.tasks.selection_rules import SelectionRules, highest_concurrency

# 2: a reason is given for the champion as well.
# 3: requests and their cost may decide.
VERSION = 3


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


def select(
    measurements: Sequence[Measurement],
    reference: Mapping[str, Score],
    champion: Measurement | None,
    args: SelectArgs,
) -> Decision:
    """Return the winner among the measured candidates, and why not each of the others.

    `reference` are the scores of the unquantized model. `champion` is how the serving candidate
    was measured (on the same data, if the comparison is to be fair); it is not released anew,
    unless it is one of `measurements`, by label and artifact.
    """
    rules = SelectionRules(reference, args)
    objections = {
        measurement.candidate.label: rules.objections(measurement) for measurement in measurements
    }
    refused = {
        label: objection.refused for label, objection in objections.items() if objection.refused
    }
    eligible = [
        measurement for measurement in measurements if measurement.candidate.label not in refused
    ]
    notes = {
        label: objection.doubt
        for label, objection in objections.items()
        if objection.doubt and label not in refused
    }
    ranked = sorted(eligible, key=rules.rank)
    values = {
        measurement.candidate.label: value
        for measurement in measurements
        if (value := rules.objective(measurement)) is not None
    }
    winner, why = _winner(ranked, measurements, champion, rules)
    is_champion = champion is not None and winner is not None and is_same(winner, champion)
    reasons = {
        **refused,
        **{
            measurement.candidate.label: rules.why_not(measurement, winner, champion)
            for measurement in ranked
            if measurement != winner
        },
    }
    if champion is not None and champion.candidate.label not in objections:
        reasons[champion.candidate.label] = _of_the_champion(champion, winner, rules)
    return Decision(
        winner=winner.candidate.label if winner else None,
        # Where nobody is within the limits, the run has failed (require_winner), though the
        # champion goes on serving.
        keeps_champion=bool(ranked) and champion is not None and (winner is None or is_champion),
        why=why,
        reasons=reasons,
        refused=list(refused),
        notes=notes,
        metric=args.metric,
        objective=args.objective,
        values=values,
        concurrency=args.concurrency or highest_concurrency(measurements),
    )


def require_winner(decision: Decision) -> None:
    """Stop where no candidate is within the limits.

    Raises:
        GateFailed: naming each candidate's reason. Not raised when the champion just was not
            beaten.
    """
    if decision.winner is None and not decision.keeps_champion:
        reasons = (
            "; ".join(f"{label}: {decision.reasons[label]}" for label in decision.refused)
            or "none was measured"
        )
        raise GateFailed(
            "selecting a winner",
            f"no candidate is within the limits ({reasons})",
            "nothing was promoted; what serves goes on serving",
        )


def is_same(measurement: Measurement, other: Measurement) -> bool:
    """Whether two measurements are of one candidate, whatever options tuning found each time."""
    mine, yours = measurement.candidate, other.candidate
    return (mine.variant.artifact.digest, mine.engine.kind) == (
        yours.variant.artifact.digest,
        yours.engine.kind,
    )


def _of_the_champion(
    champion: Measurement, winner: Measurement | None, rules: SelectionRules
) -> str:
    """Return what becomes of the version that serves."""
    if winner is None:
        return "it goes on serving"
    label = winner.candidate.label
    if is_same(winner, champion):
        return f"it is {label}, which wins, and goes on serving"
    why = rules.objections(champion).refused or rules.beats(winner, champion)
    return f"{label} takes its place" + (f": {why}" if why else "")


def _winner(
    ranked: list[Measurement],
    measurements: Sequence[Measurement],
    champion: Measurement | None,
    rules: SelectionRules,
) -> tuple[Measurement | None, str]:
    if not ranked:
        return None, "No candidate is within the limits" if measurements else "Nothing was measured"
    if champion is None:
        return ranked[0], rules.praise(ranked[0], ranked)
    remeasured = next(
        (measurement for measurement in measurements if is_same(measurement, champion)), None
    )
    # Its figures of this weighing where it took part: earlier ones may be of another machine.
    current = remeasured or champion
    if refused := rules.objections(current).refused:
        best = ranked[0]
        return best, f"{rules.praise(best, ranked)}; the champion is out of the limits: {refused}"
    if remeasured is not None and ranked[0] == remeasured:
        return remeasured, f"{rules.praise(remeasured, ranked)}; it is the champion already"
    # Not the best ranked alone: one further down may be better in quality beyond doubt.
    for measurement in ranked:
        if measurement != remeasured and (better := rules.beats(measurement, current)):
            return (
                measurement,
                f"{measurement.candidate.label} takes the champion's place: {better}",
            )
    return (
        remeasured,
        f"Nobody beats the champion ({current.candidate.label}, {rules.shown(current)}) by enough",
    )
