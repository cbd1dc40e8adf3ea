"""What Prefect costs: CPU of flows against plain scripts that call the same stages.

Three comparisons, in each of which the sides take turns:

- stages that do nothing, 8 of them and 108, through the stage cache: as tasks of a flow with an API
  of its own, and in a plain loop; once as new work, once with nothing to do. The difference is the
  task wrapper, its server, and their imports.
- two such stages, as a flow here and as one that starts Prefect's ephemeral server; ZenML's figure
  is the goal.
- a release with nothing to do, of a recipe that ran before: the command `weighbridge run`; the same
  release without task wrappers, which leaves stages, MLflow and the report; and the stages alone.

Usage: python -m benchmarks.overhead [--rounds N] [--quick]

A round takes half a minute on two idle cores, twice that on busy ones. `--quick` is one round
without the release: does the benchmark work, and is the order of magnitude right?
"""

import argparse
import sys
import tempfile
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.common import Figures, alternate, report
from benchmarks.cpu import COMMAND, bytecode_note, cpu_seconds
from benchmarks.recipes import small_recipe
from weighbridge.core.settings import Settings
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.workspace import Workspace

ON_TOP = 5.0
"""CPU seconds that Prefect may add to a release."""
PER_TASK = 0.02
"""CPU seconds that it may add to each further task."""
ZENML = 5.1
"""CPU seconds of ZenML 0.98 for two steps that do nothing, measured once on two cores."""
FEW, MANY = 8, 108


class Nothing(BaseModel):
    """A stage's result."""

    number: int


def stage(number: int, run: int) -> StageOutcome[Nothing]:
    """Run a stage that only the cache works for; another `run` makes it new work."""
    inputs = {"number": number, "run": run}
    return Workspace().stages.run(
        f"stage-{number}", 1, Nothing, inputs, lambda: Nothing(number=number)
    )


def plain(count: int, run: int) -> None:
    for number in range(count):
        stage(number, run)


def in_flow(count: int, run: int) -> None:
    from weighbridge.flows.prefect_server import prefect_api

    with prefect_api(Settings()):
        from weighbridge.flows.prefect_adapter import release_flow, run_stage

        @release_flow(name="overhead")
        def overhead() -> None:
            for number in range(count):
                run_stage(f"stage-{number}", partial(stage, number, run))

        overhead()


def ephemeral(count: int) -> None:
    """Run the same flow in plain Prefect, which starts a server in a process of its own."""
    from prefect import flow, task

    @flow
    def overhead() -> None:
        for number in range(count):
            task(name=f"stage-{number}")(lambda: None)()

    overhead()


def without_prefect(recipe: str) -> None:
    """Run the release as a plain script: the same code, and the bare call in the place of each task
    wrapper.
    """
    bare: Any = types.ModuleType("weighbridge.flows.prefect_adapter")
    bare.run_stage = lambda name, call, description="": call()
    bare.release_flow = lambda **options: lambda function: function
    bare.publish_weighing = lambda *args, **kwargs: None
    # Before the flow is imported, which takes these names from it.
    sys.modules["weighbridge.flows.prefect_adapter"] = bare
    from weighbridge.configs.load import load
    from weighbridge.flows.release import release

    release(load(Path(recipe)))


def stages_alone(recipe: str) -> None:
    """Run every stage up to the packaged winner, without MLflow."""
    from weighbridge.configs.load import load
    from weighbridge.flows import cached_stages
    from weighbridge.tasks.download import pin

    loaded, workspace = load(Path(recipe)), Workspace()
    downloaded = (
        cached_stages.download_step(pin(loaded.download, workspace), loaded, workspace)
        .run(workspace)
        .value
    )
    args = loaded.finetune
    assert args != "none", "the recipe fine-tunes"
    model = (
        cached_stages.finetune_step(downloaded, args, workspace, lambda step, losses: None)
        .run(workspace)
        .value.merged
    )
    evaluated = (
        cached_stages.evaluate_step(downloaded, model, loaded, workspace).run(workspace).value
    )
    optimized = (
        cached_stages.optimize_step(downloaded, model, loaded, workspace).run(workspace).value
    )
    weighed = (
        cached_stages.weigh_step(downloaded, model, optimized, loaded, workspace)
        .run(workspace)
        .value
    )
    decision = cached_stages.select_step(weighed, evaluated, None, loaded).run(workspace).value
    winner = cached_stages.winner_of(decision, weighed)
    assert winner is not None
    cached_stages.package_step(
        winner, cached_stages.lineage_of(downloaded, model, loaded), loaded, workspace
    ).run(workspace)


SIDES: dict[str, Callable[..., None]] = {
    "plain": lambda count, run: plain(int(count), int(run)),
    "flow": lambda count, run: in_flow(int(count), int(run)),
    "ephemeral": lambda count: ephemeral(int(count)),
    "without_prefect": without_prefect,
    "stages": stages_alone,
}


def this_script(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.overhead", "--side", *map(str, arguments)]


def compare_loops(figures: Figures, rounds: int) -> None:
    """Compare flow and loop; the homes stay for all turns, so that only the very first makes
    Prefect's tables.
    """
    with tempfile.TemporaryDirectory() as folder:
        homes = {side: {"WEIGHBRIDGE_HOME": f"{folder}/{side}"} for side in ("plain", "flow")}
        turn_of = dict.fromkeys(homes, 0)

        def turn(name: str) -> float:
            side, count, new = name.split()
            turn_of[side] += new == "new"
            return cpu_seconds(this_script(side, count, turn_of[side]), homes[side])

        # Makes Prefect's tables, which no turn shall count.
        turn(f"flow {FEW} new")
        names = [
            f"{side} {count} {kind}"
            for kind in ("new", "again")
            for count in (FEW, MANY)
            for side in homes
        ]
        cpu = alternate(names, turn, rounds)
    for kind, title in (("new", ""), ("again", "_nothing_to_do")):
        on_top = [
            flow - loop
            for flow, loop in zip(
                cpu[f"flow {FEW} {kind}"], cpu[f"plain {FEW} {kind}"], strict=True
            )
        ]
        many = [
            flow - loop
            for flow, loop in zip(
                cpu[f"flow {MANY} {kind}"], cpu[f"plain {MANY} {kind}"], strict=True
            )
        ]
        per_task = [(more - few) / (MANY - FEW) for more, few in zip(many, on_top, strict=True)]
        figures.add(f"plain{title}_cpu_s", cpu[f"plain {FEW} {kind}"])
        figures.add(f"flow{title}_cpu_s", cpu[f"flow {FEW} {kind}"])
        figures.add(f"flow_on_top{title}_cpu_s", on_top, at_most=ON_TOP)
        figures.add(f"extra_task{title}_cpu_s", per_task, at_most=PER_TASK)


def compare_servers(figures: Figures, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {
            "WEIGHBRIDGE_HOME": f"{folder}/home",
            "PREFECT_HOME": f"{folder}/prefect",
            "DO_NOT_TRACK": "1",
        }
        # Its 20 s are short on a busy machine.
        env["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "120"
        sides = {"flow": this_script("flow", 2, 0), "ephemeral": this_script("ephemeral", 2)}
        # The first start of each makes tables.
        for command in sides.values():
            cpu_seconds(command, env)
        cpu = alternate(list(sides), lambda side: cpu_seconds(sides[side], env), rounds)
    figures.add("two_stages_cpu_s", cpu["flow"], at_most=ZENML)
    figures.add("two_stages_ephemeral_server_cpu_s", cpu["ephemeral"])


def compare_releases(figures: Figures, rounds: int) -> None:
    from examples.support_tickets import ensure

    with tempfile.TemporaryDirectory() as folder:
        env = {
            "WEIGHBRIDGE_HOME": f"{folder}/home",
            "BENTOML_HOME": f"{folder}/bentoml",
            "DO_NOT_TRACK": "1",
        }
        env["WEIGHBRIDGE_DEMO"] = str(ensure(Settings().cache))
        recipe = small_recipe(Path(folder), "overhead", deploy={"promote": "never"})
        sides = {
            "run": [COMMAND, "run", str(recipe)],
            "without_prefect": this_script("without_prefect", recipe),
            "stages": this_script("stages", recipe),
        }
        # Does the work; the turns then find nothing to do.
        cpu_seconds(sides["run"], env)
        cpu = alternate(list(sides), lambda side: cpu_seconds(sides[side], env), rounds)
    for side in ("stages", "without_prefect", "run"):
        figures.add(f"release_{side}_nothing_to_do_cpu_s", cpu[side])
    journal = [
        with_mlflow - alone
        for with_mlflow, alone in zip(cpu["without_prefect"], cpu["stages"], strict=True)
    ]
    on_top = [run - bare for run, bare in zip(cpu["run"], cpu["without_prefect"], strict=True)]
    figures.add("mlflow_and_report_nothing_to_do_cpu_s", journal)
    figures.add(
        "run_and_mlflow_and_report_nothing_to_do_cpu_s",
        [a + b for a, b in zip(journal, on_top, strict=True)],
    )
    figures.add("run_on_top_nothing_to_do_cpu_s", on_top, at_most=ON_TOP)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="turns of each side: 5, with --quick 1")
    parser.add_argument(
        "--quick", action="store_true", help="only stages that do nothing, no release"
    )
    parser.add_argument("--side", nargs="+", metavar="WORD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        SIDES[options.side[0]](*options.side[1:])
        return
    bytecode_note()
    figures = Figures("overhead")
    rounds = options.rounds or (1 if options.quick else 5)
    compare_loops(figures, rounds)
    compare_servers(figures, rounds)
    if not options.quick:
        compare_releases(figures, rounds)
    report(figures)


if __name__ == "__main__":
    main()
