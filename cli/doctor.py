"""The command that looks at the machine: doctor."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import click

from weighbridge.core.settings import Settings

GIB = 2**30
NEEDED_GIB = 5
"""Room for the environments of one engine and the artifacts of a small model."""


@dataclass(frozen=True)
class Diagnosis:
    """One thing a machine has or lacks."""

    what: str
    state: str
    ok: bool
    remedy: str = ""
    optional: bool = False
    """Whether most work goes without it, or a run gets it by itself."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every environment.")
@click.option("--store", "read_store", is_flag=True, help="Read the artifact store, 1 s per GB.")
def doctor(as_json: bool, read_store: bool) -> None:
    """Say what is missing on this machine, and how to get it."""
    settings = Settings()
    environments = list(_environments(settings))
    stored = [_stored(settings)] if read_store else []
    shared = list(_shared(settings))
    if as_json:
        findings = [*_disks(settings), *shared, *stored, *environments, *_programs()]
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    from weighbridge.cli.terminal import table

    findings = [*_disks(settings), *shared, *stored, *_together(environments), *_programs()]
    table(["", "what", "state", "how to get it"], [_row(finding) for finding in findings])


def _row(finding: Diagnosis) -> list[str]:
    from rich.markup import escape

    missing = "[dim]missing[/dim]" if finding.optional else "[yellow]missing[/yellow]"
    mark = "[green]ok[/green]" if finding.ok else missing
    return [mark, finding.what, escape(finding.state), escape(finding.remedy)]


def _disks(settings: Settings) -> Iterator[Diagnosis]:
    from weighbridge.core.disk import free_bytes

    for label, folder in (("state", settings.home), ("cache", settings.cache)):
        free = free_bytes(folder) / GIB
        enough = free >= NEEDED_GIB
        remedy = "" if enough else "make room, or move it: WEIGHBRIDGE_HOME, WEIGHBRIDGE_CACHE"
        state = f"{free:.0f} GiB free at {folder}"
        yield Diagnosis(f"disk for {label}", state, enough, remedy)


def _shared(settings: Settings) -> Iterator[Diagnosis]:
    """Say whether what this home shares with others can be used, where it shares anything."""
    from weighbridge.core.errors import WeighbridgeError
    from weighbridge.core.workspace import Workspace
    from weighbridge.registry import clocks, homes

    shared = Workspace(settings).shared
    checks: list[tuple[str, str, Callable[[], object]]] = []
    if shared is not None:
        checks.append(("shared store", f"{settings.store} can be written", shared.check))
    if settings.tracking_uri:
        checks.append(
            (
                "MLflow",
                "no other home works with it that nothing keeps apart from this one",
                lambda: homes.check(settings, "looking at MLflow"),
            )
        )
    if settings.tracking_uri or settings.postgresql_url("psycopg2"):
        state = f"within {clocks.BORNE:.0f} s of MLflow's, or of the database's"
        checks.append(("clock", state, lambda: clocks.check(settings)))
    for what, state, check in checks:
        try:
            check()
        except WeighbridgeError as exc:
            yield Diagnosis(what, f"{exc.doing}: {exc.wrong}", ok=False, remedy=exc.remedy)
        else:
            yield Diagnosis(what, state, ok=True)


def _stored(settings: Settings) -> Diagnosis:
    """Read every file of the artifact store, and say what is damaged."""
    from weighbridge.core.progress import track
    from weighbridge.core.store import Store

    store = Store(settings.home / "store")
    damaged, blobs = set(), store.blobs()
    with track("reading", len(blobs), "files") as update:
        for done, blob in enumerate(blobs, 1):
            if store.is_damaged(blob):
                damaged.add(blob.name)
            update(done)
    if not damaged:
        return Diagnosis("store", f"{len(blobs)} files, all whole", ok=True)
    artifacts = [
        digest.removeprefix("sha256:")[:12]
        for digest in store.digests()
        if any(file.sha256 in damaged for file in store.files(digest))
    ]
    state = f"{len(damaged)} of {len(blobs)} files damaged, of {', '.join(artifacts) or 'none'}"
    remedy = "run the recipes again: what is damaged is fetched or made again, and serves nowhere"
    return Diagnosis("store", state, ok=False, remedy=remedy)


def _environments(settings: Settings) -> Iterator[Diagnosis]:
    from weighbridge.core import environments, plugins

    for name in plugins.names("engine"):
        for device, lock in plugins.load("engine", name).locks.items():
            environment, whole = environments.locate(lock, settings.cache)
            install = (
                "a run builds what it needs; now: "
                f"weighbridge engines install {name} --device {device}"
            )
            yield Diagnosis(
                f"engine {name}, {device}",
                str(environment.path) if whole else "environment not built yet",
                whole,
                "" if whole else install,
                optional=True,
            )


def _together(environments: list[Diagnosis]) -> Iterator[Diagnosis]:
    """Return one line for the environments that are there, and one for the others."""
    for there in (True, False):
        names = [
            finding.what.removeprefix("engine ").replace(", ", "/")
            for finding in environments
            if finding.ok is there
        ]
        remedy = (
            "" if there else "a run builds what it needs; now: weighbridge engines install NAME"
        )
        if names:
            yield Diagnosis("engines", ", ".join(names), there, remedy, optional=True)


def _programs() -> Iterator[Diagnosis]:
    # haproxy lies where only the superuser looks by default.
    haproxy = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    remedy = "" if haproxy else "serves every target: apt-get install haproxy"
    yield Diagnosis("haproxy", haproxy or "not on the PATH", bool(haproxy), remedy)
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    compiler = next((path for name in names if name and (path := shutil.which(name))), None)
    remedy = "" if compiler else "for K-quants and native builds: apt-get install g++"
    yield Diagnosis("C++ compiler", compiler or "not on the PATH", bool(compiler), remedy)
    gpu = shutil.which("nvidia-smi")
    remedy = "" if gpu else "needed by CUDA engines alone"
    yield Diagnosis("GPU", gpu or "no NVIDIA driver", bool(gpu), remedy, optional=True)
