"""Release: a base model goes in, an endpoint that answers comes out."""

from dataclasses import dataclass
from typing import Annotated

from weighbridge.configs.recipe import Recipe
from weighbridge.flows.cached_stages import winner_of
from weighbridge.flows.prefect_adapter import publish_weighing, release_flow
from weighbridge.flows.release_run import ReleaseRun
from weighbridge.flows.run_form import RunForm
from weighbridge.serving.targets.base import Release, Serving
from weighbridge.tasks.data import Row, read_rows
from weighbridge.tasks.report import WeighingReport
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
    """Take a base model to an endpoint. Finished stages are reused, nothing is registered twice."""
    with ReleaseRun.begin(recipe) as run:
        run.preflight()
        downloaded = run.download()
        run.check_model(downloaded)
        model = run.finetune(downloaded)
        evaluated = run.evaluate(downloaded, model)
        optimized = run.optimize(downloaded, model)
        weighed = run.weigh(downloaded, model, optimized)
        decision, measurements = run.select(downloaded, evaluated, weighed)
        winner = winner_of(decision, weighed)
        report = run.report(downloaded, model, evaluated, weighed, decision, measurements)
        page = report.page
        publish_weighing(report.markdown, page.rows, report.chart, f"{recipe.name}-report")
        # After the report, which says of each candidate why it did not win.
        require_winner(decision)
        chosen = (
            run.package(downloaded, model, winner, weighed) if winner else run.champions_release()
        )
        if winner is None or run.promotes():
            serving = run.target.deploy(chosen)
        else:
            # The winner waits; the address is as the recipe says all the same.
            run.target.put_in_force()
            serving = None
        example = read_rows(downloaded.data, "test", most=1)[0]
        return Released(chosen, report, serving, run.records.mlflow_run.run_id, example)
