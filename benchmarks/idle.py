"""What an idle platform costs: processor time and memory of every program, with one version that
serves and that nobody asks.

After one promotion, since that loads what the deployer keeps from then on. Memory is the
proportional set size (PSS): pages that processes share count once. Processor time is user plus
system time of each program's processes over the minutes watched.

Usage: python -m benchmarks.idle [--minutes N] [--home HOME]
"""

import argparse
import contextlib
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.common import Figures, report
from benchmarks.redeploy import installation
from weighbridge.serving.reaper import MARK, marked

SETTLE = 60.0
"""Seconds after the promotion until nothing of it is left: drained, mirrored, collected."""
MINUTES = 3.0
CPU_PERCENT = 3.0
"""Of one core, all programs together."""
MEMORY_MIB = 1024.0


@dataclass
class Usage:
    """What the processes of one program have used."""

    cpu_seconds: float = 0.0
    pss_mib: float = 0.0


def usage(home: Path) -> Mapping[str, Usage]:
    """Return what every program of an installation has used until now, by its name."""
    totals: dict[str, Usage] = defaultdict(Usage)
    supervisord = int((home / "run" / "supervisord.pid").read_text())
    for pid in [supervisord, *marked(f"{home}:")]:
        with contextlib.suppress(psutil.Error):  # a short-lived one has ended
            process = psutil.Process(pid)
            name = "supervisord" if pid == supervisord else _program(process, home)
            times = process.cpu_times()
            # With its children that have ended: checks that a service starts count as well.
            totals[name].cpu_seconds += sum(times[:4])
            totals[name].pss_mib += process.memory_full_info().pss / 2**20
    return totals


def watch(home: Path, minutes: float, figures: Figures) -> None:
    """Measure for some minutes, and add what each program cost and what all did."""
    before, began = usage(home), time.monotonic()
    time.sleep(60 * minutes)
    after, seconds = usage(home), time.monotonic() - began
    percent = {
        name: 100 * (used.cpu_seconds - before.get(name, Usage()).cpu_seconds) / seconds
        for name, used in after.items()
    }
    for name in sorted(after, key=lambda name: -after[name].pss_mib):
        figures.add(f"{name}_cpu_percent", percent[name])
        figures.add(f"{name}_mib", after[name].pss_mib)
    figures.add("all_cpu_percent", sum(percent.values()), at_most=CPU_PERCENT)
    figures.add("all_mib", sum(used.pss_mib for used in after.values()), at_most=MEMORY_MIB)


def _program(process: psutil.Process, home: Path) -> str:
    return str(process.environ()[MARK]).removeprefix(f"{home}:")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="to watch (%(default)s)")
    parser.add_argument("--home", type=Path, help="of a platform that is up; else one is made")
    options = parser.parse_args()
    figures = Figures("idle")
    if options.home:
        watch(options.home, options.minutes, figures)
    else:
        with installation():
            print("idle from now on", file=sys.stderr, flush=True)
            time.sleep(SETTLE)
            watch(Path(os.environ["WEIGHBRIDGE_HOME"]), options.minutes, figures)
    report(figures)


if __name__ == "__main__":
    main()
