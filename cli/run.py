"""The command that runs a recipe: run."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from weighbridge.flows.release import Released


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON; progress goes to stderr."
)
def run(recipe: Path, as_json: bool) -> None:
    """Run RECIPE: download, finetune, evaluate, optimize, weigh, select, package, deploy.

    Finished stages are reused, also those of a run that was killed. Nothing needs to be running.
    """
    from weighbridge.cli import terminal
    from weighbridge.configs.load import load
    from weighbridge.core.settings import Settings
    from weighbridge.flows.prefect_server import prefect_api

    loaded = load(recipe)
    settings = Settings()
    with (
        terminal.live_progress(terminal.stderr if as_json else terminal.console),
        prefect_api(settings),
    ):
        # Here, and not above: it imports Prefect, which reads its settings then and only once.
        from weighbridge.flows.release import release

        released = release(loaded)
    if as_json:
        click.echo(json.dumps(_plain(released), indent=2))
        return
    _show(released)
    _where_to_look(settings.mlflow_uri(), settings.home / "prefect")


def _plain(released: "Released") -> dict[str, Any]:
    return {
        **released.chosen.model_dump(mode="json"),
        "headline": released.report.headline,
        "why": released.report.why,
        "candidates": released.report.rows,
        "serving": released.serving.model_dump(mode="json") if released.serving else None,
        "mlflow_run": released.run_id,
    }


def _show(released: "Released") -> None:
    from weighbridge.cli.terminal import console, print_report
    from weighbridge.serving.openai_client import Client, request

    console.print()
    print_report(released.report)
    console.print()
    chosen = released.chosen
    if released.serving is None:
        console.print(
            f"{chosen.name} {chosen.version} is `challenger`; it serves once somebody promotes it."
        )
        return
    address = released.serving.address
    prompt: Any = released.example.model_dump()["prompt"]
    path, body = request(prompt, max_tokens=64)
    console.print(f"[bold]{chosen.name} {chosen.version} serves at {address}/v1[/bold]\n")
    command = [
        "curl",
        f"{address}{path}",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(body),
    ]
    # Not by rich, which would wrap the line that people copy.
    click.echo(shlex.join(command))
    click.echo(f"\n{prompt if isinstance(prompt, str) else prompt[-1]['content']}")
    click.echo(f"→ {Client(address).ask(prompt, max_tokens=64).text}\n")


def _where_to_look(mlflow_uri: str, prefect_home: Path) -> None:
    ui = (
        f"mlflow ui --backend-store-uri {mlflow_uri}"
        if mlflow_uri.startswith("sqlite")
        else f"open {mlflow_uri}"
    )
    click.echo(f"versions and figures: {ui}")
    click.echo(f"runs and report:      PREFECT_HOME={prefect_home} prefect server start")
