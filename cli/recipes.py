"""Commands about a recipe that run nothing: init, plan, schema."""

import json
from pathlib import Path

import click

from weighbridge.core.errors import BadInput
from weighbridge.core.paths import PACKAGE


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("recipe.yaml"))
def init(path: Path) -> None:
    """Write a commented starter recipe to PATH (default: recipe.yaml)."""
    starter = PACKAGE / "configs" / "starter.yaml"
    try:
        # Never over a recipe that somebody has edited.
        with path.open("x") as stream:
            stream.write(starter.read_text())
    except FileExistsError as exc:
        raise BadInput(f"writing {path}", "the file exists already", "give another name") from exc
    except OSError as exc:
        raise BadInput(f"writing {path}", str(exc), "give a name in a folder that exists") from exc
    click.echo(f"wrote {path}; edit it, then: weighbridge plan {path}")


@click.command()
def schema() -> None:
    """Print the JSON schema of recipes.

    Editors with the YAML language server use it through a first line such as
    `# yaml-language-server: $schema=recipe.schema.json`.
    """
    from weighbridge.configs.recipe import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(recipe: Path, as_json: bool) -> None:
    """Say stage by stage what RECIPE would run, what would be reused and why, and what it needs."""
    from weighbridge.configs.load import load
    from weighbridge.core.settings import Settings
    from weighbridge.flows.plan import plan as make_plan
    from weighbridge.registry import homes

    loaded, settings = load(recipe), Settings()
    homes.check(settings, f"planning {loaded.name}")
    forecast = make_plan(loaded)
    if as_json:
        click.echo(
            json.dumps([stage.model_dump(mode="json") for stage in forecast.stages], indent=2)
        )
        return
    from weighbridge.cli.terminal import print_plan

    print_plan(forecast)
