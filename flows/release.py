"""Release: a base model goes in, an endpoint that answers comes out."""

from dataclasses import dataclass
from typing import Annotated

from weighbridge.configs.recipe import Recipe
from weighbridge.flows.cached_stages import lineage_of, winner_of
from weighbridge.flows.prefect_adapter import publish_weighing, release_flow
from weighbridge.flows.release_run import ReleaseRun
from weighbridge.flows.run_form import RunForm
from weighbridge.serving.targets.base import Release, Serving
from weighbridge.tasks.data import Row, read_rows
from weighbridge.tasks.report import WeighingReport, weighing_report
from weighbridge.tasks.select import require_winner


@dataclass(frozen=True)
class Released:
    """What a release leaves."""

    chosen: Release
    report: WeighingReport
    serving: Serving | None
    """None where the recipe leaves the winner as challenger."""
    run_id: str
    """Of the release in MLflow."""
    example: Row
    """One row of the test split, to try the endpoint with."""


@release_flow(name="release", flow_run_name="release {recipe.name}")
def release(recipe: Annotated[Recipe, RunForm()]) -> Released:
    """From base model to served endpoint. Finished stages are reused; nothing is registered twice."""
    work = ReleaseRun.begin(recipe)
    with work.journal.run:
        got = work.download()
        tuned = work.finetune(got)
        evaluated = work.evaluate(got, tuned)
        made = work.optimize(got, tuned)
        weighed = work.weigh(got, made)
        decision, measurements = work.select(got, evaluated, weighed)
        report = weighing_report(
            decision,
            measurements,
            evaluated,
            recipe.name,
            facts=lineage_of(got, tuned, recipe),
            currency=recipe.weigh.currency,
        )
        work.journal.report(report, work.workspace)
        publish_weighing(report.markdown, report.rows, report.chart, f"{recipe.name}-report")
        require_winner(decision)
        winner = winner_of(decision, weighed)
        chosen = work.package(got, tuned, winner, weighed) if winner else work.champions_release()
        serving = work.deploy(chosen) if winner is None or work.promotes() else None
        return Released(
            chosen, report, serving, work.journal.run.run_id, read_rows(got.data, "test")[0]
        )
