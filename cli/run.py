"""The command that runs a recipe, or repeats a release: run."""

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weighbridge.cli.references import model_and_version

if TYPE_CHECKING:
    from weighbridge.core.settings import Settings
    from weighbridge.flows.release import Released


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON; progress goes to stderr."
)
@click.option(
    "--replay",
    metavar="NAME@VERSION",
    help="Make and measure a released version again, and say which figures leave the intervals "
    "that were recorded. Nothing is registered or served.",
)
def run(recipe: Path | None, as_json: bool, replay: str | None) -> None:
    """Run RECIPE: download, finetune, evaluate, optimize, weigh, repeat, select, package,
    deploy.

    Finished stages are reused, also those of a run that was killed. Nothing needs to be running.
    """
    if (recipe is None) == (replay is None):
        raise click.UsageError("give a RECIPE to run, or --replay NAME@VERSION")
    if replay is not None:
        _replay(*model_and_version(replay, None), as_json)
    elif recipe is not None:
        _run(recipe, as_json)


def _replay(name: str, which: str, as_json: bool) -> None:
    from weighbridge.cli import terminal
    from weighbridge.core.errors import GateFailed
    from weighbridge.core.settings import Settings
    from weighbridge.flows.prefect_server import prefect_api
    from weighbridge.tasks.replay import outside

    with (
        terminal.live_progress(terminal.stderr if as_json else terminal.console),
        prefect_api(Settings()),
    ):
        from weighbridge.flows.replay import replay

        replayed = replay(name, which)
    rows = [figure.model_dump(mode="json") for figure in replayed.figures]
    if as_json:
        click.echo(json.dumps({"version": replayed.version.version, "figures": rows}, indent=2))
    else:
        terminal.table(list(rows[0]), [list(row.values()) for row in rows])
    if left := outside(replayed.figures):
        raise GateFailed(
            f"replaying {name} {replayed.version.version}",
            f"{', '.join(left)} left the interval that was recorded",
            "what differs between then and now: the machine, an engine's build, the sources",
        )


def _run(recipe: Path, as_json: bool) -> None:
    from weighbridge.cli import terminal
    from weighbridge.configs.load import load
    from weighbridge.core.settings import Settings
    from weighbridge.flows.prefect_server import prefect_api

    loaded = load(recipe)
    settings = Settings()
    with (
        terminal.live_progress(terminal.stderr if as_json else terminal.console),
        prefect_api(settings) as api,
    ):
        # Here, and not above: it imports Prefect, which reads its settings then and only once.
        from weighbridge.flows.release import release

        released = release(loaded)
    if as_json:
        click.echo(json.dumps(_plain(released, loaded.weigh.currency), indent=2))
        return
    _show(released, loaded.target)
    _where_to_look(settings, released.chosen.name, api)


def _plain(released: "Released", currency: str) -> dict[str, Any]:
    """Return the result for programs: numbers, whose units are told once."""
    from weighbridge.tasks.report import UNITS

    return {
        **released.chosen.model_dump(mode="json"),
        "headline": released.report.page.headline,
        "why": released.report.page.why,
        "candidates": released.report.figures,
        "units": {
            **UNITS,
            "cost_per_million_tokens": currency,
            "cost_per_thousand_requests": currency,
        },
        "serving": released.serving.model_dump(mode="json") if released.serving else None,
        "mlflow_run": released.run_id,
    }


def _show(released: "Released", name: str) -> None:
    from weighbridge.cli.report import print_report
    from weighbridge.cli.terminal import console
    from weighbridge.core.workspace import Workspace
    from weighbridge.rollout.target_operations import find_target
    from weighbridge.serving.openai_client import Client, request

    console.print()
    print_report(released.report.page)
    console.print()
    chosen = released.chosen
    if released.serving is None:
        console.print(
            f"{chosen.name} {chosen.version} is `challenger`; let it serve with: "
            f"weighbridge promote {chosen.name} {chosen.version}",
            soft_wrap=True,
        )
        return
    managed = find_target(name, Workspace())
    target = managed.target
    address, key = target.address, target.credentials()
    prompt: Any = released.example.model_dump()["prompt"]
    client = Client(managed.address_here, headers=key, certificate=target.certificate())
    path, body = request(prompt, model=client.model, max_tokens=64)
    console.print(f"[bold]{chosen.name} {chosen.version} serves at {address}/v1[/bold]\n")
    command = [
        "curl",
        f"{address}{path}",
        # On this machine the address has no name that the certificate could be for.
        *(["--insecure"] if target.certificate() else []),
        *(["-H", "Authorization: Bearer YOUR_KEY"] if key else []),
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps(body),
    ]
    # Not by rich, which would wrap the line that people copy.
    click.echo(shlex.join(command))
    click.echo(f"\n{prompt if isinstance(prompt, str) else prompt[-1]['content']}")
    click.echo(f"→ {client.ask(prompt, max_tokens=64).text}\n")


def _where_to_look(settings: "Settings", model: str, prefect_api: str | None) -> None:
    """Say where versions, figures and runs of this installation are shown now."""
    click.echo(f"versions and figures: {_mlflow_page(settings, model)}")
    if prefect_api is None:
        # The server that the run had of its own is gone.
        page = f"PREFECT_HOME={settings.home / 'prefect'} prefect server start"
    else:
        # Prefect's own setting of where people see it.
        page = os.environ.get("PREFECT_UI_URL") or prefect_api.removesuffix("/api")
    click.echo(f"runs and report:      {page}")


def _mlflow_page(settings: "Settings", model: str) -> str:
    """Return the page of a model; where no server runs, the command that brings one up."""
    from weighbridge.core import service_addresses
    from weighbridge.registry.mlflow_errors import without_login

    uri, ports = settings.tracking_uri, service_addresses.read(settings.home)
    if uri.startswith("http"):
        # A browser asks for the login.
        return f"{without_login(uri).rstrip('/')}/#/models/{model}"
    if ports and service_addresses.answers(f"{ports.url('mlflow')}/health"):
        return f"{ports.url('mlflow')}/#/models/{model}"
    uri = settings.mlflow_uri()
    # The address of another database may hold a password.
    return f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite") else "weighbridge up"
