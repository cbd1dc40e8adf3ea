"""The command that looks at the machine: doctor."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click

from weighbridge.core.settings import Settings

GIB = 2**30


@dataclass(frozen=True)
class Diagnosis:
    """One thing a machine has or lacks."""

    what: str
    state: str
    ok: bool
    remedy: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what is missing on this machine, and how to get it."""
    findings = list(_findings(Settings()))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        from weighbridge.cli.terminal import table

        marks = {True: "[green]ok[/green]", False: "[yellow]missing[/yellow]"}
        table(
            ["", "what", "state", "how to get it"],
            [
                [marks[finding.ok], finding.what, finding.state, finding.remedy]
                for finding in findings
            ],
        )


def _findings(settings: Settings) -> Iterator[Diagnosis]:
    from weighbridge.core import environments, plugins
    from weighbridge.core.disk import free_bytes

    for label, folder in (("state", settings.home), ("cache", settings.cache)):
        free = free_bytes(folder) / GIB
        yield Diagnosis(
            f"disk for {label}",
            f"{free:.0f} GiB free at {folder}",
            free >= 5,
            "make room, or move it",
        )
    for name in plugins.names("engine"):
        for device, lock in plugins.load("engine", name).locks.items():
            environment, whole = environments.locate(lock, settings.cache)
            install = (
                "a run builds what it needs; now: "
                f"weighbridge engines install {name} --device {device}"
            )
            state = str(environment.path) if whole else "environment not built yet"
            # Not missing: a run builds it when it is needed.
            yield Diagnosis(f"engine {name}, {device}", state, True, "" if whole else install)
    for tool, remedy in (
        ("haproxy", "serves every target: apt-get install haproxy"),
        ("cmake", "for K-quants: apt-get install cmake"),
        ("g++", "for K-quants: apt-get install g++"),
    ):
        # haproxy lies where only the superuser looks by default.
        program = shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        yield Diagnosis(
            tool, program or "not on the PATH", bool(program), "" if program else remedy
        )
    gpu = shutil.which("nvidia-smi")
    yield Diagnosis(
        "GPU", gpu or "no NVIDIA driver", True, "" if gpu else "needed by CUDA engines alone"
    )
