"""Commands about engines: list them, install their environments."""

import json

import click

from core.settings import Settings


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def engines(context: click.Context, as_json: bool) -> None:
    """List engines with the formats and devices they serve, and whether their environment is there."""
    if context.invoked_subcommand:
        return
    from core import environments, plugins

    cache = Settings().cache
    found = []
    for name in plugins.names("engine"):
        engine = plugins.load("engine", name)
        for device, lock in engine.locks.items():
            environment, whole = environments.locate(lock, cache)
            found.append(
                {
                    "engine": name,
                    "device": device,
                    "formats": sorted(engine.formats),
                    "environment": "installed" if whole else "not installed",
                    "path": str(environment.path),
                }
            )
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    from cli.screen import table

    columns = ["engine", "device", "formats", "environment"]
    rows = [[", ".join(e[key]) if isinstance(e[key], list) else str(e[key]) for key in columns] for e in found]
    table(columns, rows)


@engines.command()
@click.argument("name")
@click.option("--device", help="Such as cpu or cuda; open: what this machine has.")
@click.option("--native", is_flag=True, help="Also build the engine's own tools from their pinned source.")
def install(name: str, device: str | None, native: bool) -> None:
    """Build the locked environment of the engine NAME."""
    from cli.screen import console, live
    from core import environments, plugins
    from core.errors import BadInput

    engine = plugins.load("engine", name)
    build = getattr(engine, "build_native", None)
    if native and build is None:
        raise BadInput(f"installing {name}", "it has no native build", f"run: weighbridge engines install {name}")
    device, settings = device or engine.device(engine.Args()), Settings()
    if device not in engine.locks:
        raise BadInput(f"installing {name}", f"it has no environment for {device}", f"known: {', '.join(engine.locks)}")
    with live():
        environment = environments.ensure(engine.locks[device], settings.cache)
        console.print(f"{name}: environment at {environment.path}")
        if native and build:
            console.print(f"{name}: native tools at {build(settings.cache)}")
