"""Where runs of the chain keep their state, and what they said, registered and left running."""

from pathlib import Path

import psutil
import yaml

from weighbridge.core.settings import Settings
from weighbridge.registry import Registry


def assert_nothing_runs(folder: Path) -> None:
    """No process has this folder on its command line."""
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in str(process.info["cmdline"])
    ]
    assert not left


def address(path: Path) -> str:
    return f"http://127.0.0.1:{yaml.safe_load(path.read_text())['deploy']['target']['port']}"


def roles() -> list[str]:
    return sorted(version.role for version in Registry.connect(Settings()).versions("chain"))


def stages(output: str) -> dict[str, str]:
    """What the terminal said of each stage."""
    lines = [line.split(maxsplit=2) for line in output.splitlines() if line.startswith("✓")]
    return {name: text for _, name, text in lines}


def winner_said(output: str) -> str:
    """The line on the winner."""
    return next(line for line in output.splitlines() if "winner: " in line)
