"""How often monitoring goes back without a reason, and how soon it finds a fall.

The product's own evidence and rules on simulated answers: a check every five minutes, rows asked in
turn, each answer given otherwise with a chance of 5 %, of a model that has 70 % right. Twenty years
in which nothing happens, then falls by 20 and by 50 points.

Usage: python -m benchmarks.monitor [--years N] [--falls N] [--quick]
"""

import argparse
import random
import sys
from collections import deque

from benchmarks.common import Figures, report
from weighbridge.rollout import monitor
from weighbridge.rollout.deploy_args import MonitorArgs
from weighbridge.rollout.monitor import Evidence, MonitorCheck
from weighbridge.rollout.probe import ProbeQuestion

CHECKS_A_YEAR = 365 * 24 * 12
ROWS = 200
RIGHT = 0.7
FLIPS = 0.05
LONGEST = 40
"""Checks after which a fall counts as not found."""
QUESTIONS = [
    ProbeQuestion(prompt=str(row), reference="", answer="", scores={}) for row in range(ROWS)
]


class Version:
    """What serves, and how its answers to the rows were weighed."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._weighed = [float(dice.random() < RIGHT) for _ in range(ROWS)]
        self._asked = 0
        self.evidence = Evidence()
        self.fall = 0.0

    def check(self) -> bool:
        """Return whether a check finds that it has fallen."""
        asked = monitor.next_questions(QUESTIONS, self._asked, MonitorArgs().questions)
        self._asked += len(asked)
        drops = [self._drop(self._weighed[int(str(question.prompt))]) for question in asked]
        bound = monitor.allowed_mean(monitor.MAX_DROP, ROWS)
        return self.evidence.bet("answers", drops, bound, -1.0) >= 1 / monitor.ALPHA

    def _drop(self, weighed: float) -> float:
        now = 1 - weighed if self._dice.random() < FLIPS else weighed
        if now and self._dice.random() < self.fall / RIGHT:
            now = 0.0
        return weighed - now


def rollbacks(years: float, dice: random.Random) -> tuple[int, int]:
    """Return how many failed checks, and how many rollbacks, there are in years without a fall."""
    version, checks = Version(dice), deque[MonitorCheck](maxlen=4)
    failed = back = 0
    for number in range(int(years * CHECKS_A_YEAR)):
        fell = version.check()
        failed += fell
        checks.append(MonitorCheck(version="7", verdict="fail" if fell else "pass", at=number))
        if fell and monitor.has_fallen(checks, "7"):
            back, version = back + 1, Version(dice)
            checks.clear()
    return failed, back


def checks_until_found(fall: float, dice: random.Random) -> int:
    """Return the checks that it takes from a fall to the first that fails."""
    version = Version(dice)
    for _ in range(ROWS // 10):
        version.check()
    version.fall = fall
    return next((n + 1 for n in range(LONGEST) if version.check()), LONGEST)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--years", type=float, default=20.0, help="without a fall (%(default)s)")
    parser.add_argument("--falls", type=int, default=1000, help="of each size (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one year, 200 falls")
    options = parser.parse_args()
    years, falls = (1.0, 200) if options.quick else (options.years, options.falls)
    figures, dice = Figures("monitor"), random.Random(12)
    for points, checks in ((20, 12), (50, 2)):
        found = [checks_until_found(points / 100, dice) for _ in range(falls)]
        share = sum(one <= checks for one in found) / falls
        figures.add(f"fall_{points}_found_within_{checks}", share, at_least=0.95)
        figures.add(f"fall_{points}_checks", found)
    print(f"{years:g} years without a fall", file=sys.stderr, flush=True)
    failed, back = rollbacks(years, dice)
    figures.add("years", years)
    figures.add("failed_checks", failed)
    figures.add("false_rollbacks", back, at_most=max(1.0, years / 20))
    report(figures)


if __name__ == "__main__":
    main()
