"""CPU of the commands a person waits for at the prompt: `weighbridge --help` and `weighbridge plan
RECIPE`.

Usage: python -m benchmarks.startup [--rounds 9]
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.common import Figures, alternate, report
from benchmarks.cpu import COMMAND, ROOT, bytecode_note, cpu_seconds
from examples.support_tickets import ensure
from weighbridge.core.settings import Settings

GOALS = {"help": 0.25, "plan": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    bytecode_note()
    commands: dict[str, list[str | Path]] = {
        "help": [COMMAND, "--help"],
        "plan": [COMMAND, "plan", ROOT / "configs" / "demo.yaml"],
    }
    demo = ensure(Settings().cache)
    with tempfile.TemporaryDirectory() as home:
        env = {"WEIGHBRIDGE_HOME": str(Path(home)), "WEIGHBRIDGE_DEMO": str(demo)}
        turns = alternate(list(commands), lambda side: cpu_seconds(commands[side], env), rounds)
    figures = Figures("startup")
    for side, goal in GOALS.items():
        figures.add(f"{side}_cpu_s", turns[side], at_most=goal)
    report(figures)


if __name__ == "__main__":
    main()
