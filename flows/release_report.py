"""The report of a release: the weighing's, with what was asked, what it costs, and how to repeat
it.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import Artifact
from weighbridge.core.settings import Settings
from weighbridge.flows.cached_stages import lineage_of, winner_of
from weighbridge.registry import Version
from weighbridge.registry.mlflow_errors import without_login
from weighbridge.tasks.costs import cost_facts
from weighbridge.tasks.download import Downloaded
from weighbridge.tasks.evaluate import Evaluated
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.report import WeighingReport, weighing_report
from weighbridge.tasks.report_page import Section
from weighbridge.tasks.report_search import search_facts
from weighbridge.tasks.report_sections import asked, data_card
from weighbridge.tasks.select import Decision
from weighbridge.tasks.weigh import Weighed


def release_report(
    recipe: Recipe,
    downloaded: Downloaded,
    model: Artifact,
    evaluated: Evaluated,
    weighed: Weighed,
    decision: Decision,
    measurements: Sequence[Measurement],
    *,
    training_seconds: float | None,
    repeat: dict[str, str],
) -> WeighingReport:
    """Return the report.

    Args:
        recipe: what was asked for.
        downloaded: base model and data.
        model: the weights to release.
        evaluated: scores of these weights, and of their base.
        weighed: every candidate.
        decision: who won.
        measurements: of every candidate with its repeats; the champion's after them, if it was
            weighed.
        training_seconds: of the fine-tune; None where there was none.
        repeat: how to repeat it (`how_to_repeat`).
    """
    winner = winner_of(decision, weighed)
    measured = next((one for one in weighed.measurements if one.candidate == winner), None)
    costs = cost_facts(measured, training_seconds, recipe.weigh, recipe.select.concurrency)
    searched = search_facts(weighed.search)
    variants = [variant.label() for variant in recipe.optimize.variants]
    return weighing_report(
        decision,
        measurements,
        evaluated if recipe.finetune != "none" else None,
        recipe.name,
        recipe.select,
        champion=next(iter(measurements[len(weighed.measurements) :]), None),
        reference=evaluated.finetuned,
        asked=[
            Section(title="What was asked", facts=asked(recipe.select, recipe.weigh, variants)),
            Section(title="The data", facts=data_card(downloaded.data)),
        ],
        sections=[
            *([Section(title="The search of options", facts=searched)] if searched else []),
            *([Section(title="What it costs", facts=costs)] if costs else []),
            Section(title="How to repeat it", facts=repeat, copied=True),
        ],
        facts=lineage_of(downloaded, model, recipe),
        currency=recipe.weigh.currency,
    )


def how_to_repeat(winner: Version | None, run_id: str, settings: Settings) -> dict[str, str]:
    """Return what to paste into a new shell: to make and measure the winner again, and to read its
    report.

    Args:
        winner: the version that is released; None where none is.
        run_id: of the release in MLflow.
        settings: of this installation.
    """
    recipe = {"the recipe is recipe.json of the run in MLflow": run_id}
    if winner is None:
        return recipe
    command, version = own_command(settings), f"{winner.name}@{winner.version}"
    return {
        "make and measure it again": f"{command} run --replay {version}",
        "read this in a terminal": f"{command} show {version}",
        **recipe,
    }


def own_command(settings: Settings) -> str:
    """Return how a new shell calls this very program on this home: without what the present one has
    on its PATH and in its environment.
    """
    program = Path(sys.executable).with_name("weighbridge")
    called = [str(program)] if program.exists() else [sys.executable, "-m", "weighbridge.cli.main"]
    differing = {
        "WEIGHBRIDGE_HOME": str(settings.home) if _is_elsewhere(settings.home) else "",
        "WEIGHBRIDGE_TRACKING_URI": without_login(settings.tracking_uri),
    }
    words = [f"{name}={shlex.quote(value)}" for name, value in differing.items() if value]
    return " ".join([*words, *map(shlex.quote, called)])


def _is_elsewhere(home: Path) -> bool:
    return home != Path.home() / ".weighbridge"
