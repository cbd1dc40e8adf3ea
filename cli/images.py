"""The command that builds container images: image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from weighbridge.services.images.image import Image


@click.command()
@click.argument("names", nargs=-1, metavar="[control|ENGINE]…")
@click.option("--builder", help="docker, podman or buildah; without it the first that answers.")
@click.option("--base", help="Image with Python 3.11 to begin with; best by its digest.")
@click.option("--device", help="Which environment of an engine, such as cpu or cuda.")
@click.option(
    "--package",
    "packages",
    multiple=True,
    metavar="NAME",
    help="A further package of Debian, such as g++ for K-quants in stage optimize.",
)
@click.option("--repository", default="", help="What names begin with: registry.example.org/team.")
@click.option("--push", is_flag=True, help="Push them to that registry.")
@click.option(
    "--build-option",
    "options",
    multiple=True,
    metavar="OPTION",
    help="A further option of the builder's build command, such as --network=host.",
)
@click.option("--dry-run", is_flag=True, help="Print the Containerfile; build nothing.")
@click.option(
    "--compose",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write a compose file of the whole platform there, with secrets made for it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; progress goes to stderr.")
def image(
    names: Sequence[str],
    builder: str | None,
    base: str | None,
    device: str | None,
    packages: Sequence[str],
    repository: str,
    push: bool,
    options: Sequence[str],
    dry_run: bool,
    compose: Path | None,
    as_json: bool,
) -> None:
    """Build the image of the control plane, and of engines, from their locks.

    `control` carries out flows and stages; an engine's image serves Bentos of that engine. An
    image whose name is there already holds the same, and is not built again.
    """
    from dataclasses import asdict

    from weighbridge.services.compose import write_compose
    from weighbridge.services.images.build import build_image
    from weighbridge.services.images.builders import find_builder
    from weighbridge.services.images.image import BASE, CONTROL, image_of

    wanted = list(dict.fromkeys([*([CONTROL] if compose else []), *names])) or [CONTROL]
    planned = [image_of(name, base or BASE, repository, device, packages) for name in wanted]
    if dry_run:
        _print_plan(planned, as_json=as_json)
        return
    found = find_builder(builder)
    pinned = found.pinned(base or BASE, _tell)
    built = [
        build_image(
            image_of(name, pinned, repository, device, packages),
            found,
            push=push,
            options=options,
            on_line=_tell,
        )
        for name in wanted
    ]
    written = write_compose(compose, built[0].reference) if compose else None
    if as_json:
        click.echo(json.dumps([asdict(one) for one in built], indent=2))
    else:
        for one in built:
            said = "was there already" if one.reused else f"built by {found.name}"
            click.echo(f"{one.reference}: {said}{', pushed' if one.pushed else ''}")
        if written:
            click.echo(f"wrote {written}; bring it up: docker compose -f {written} up --detach")


def _tell(line: str) -> None:
    click.echo(click.style(line, dim=True), err=True)


def _print_plan(planned: Sequence[Image], *, as_json: bool) -> None:
    if as_json:
        listed = [
            {"name": one.name, "reference": one.reference, "containerfile": one.text}
            for one in planned
        ]
        click.echo(json.dumps(listed, indent=2))
        return
    for one in planned:
        click.echo(f"# {one.reference}\n{one.text}")
