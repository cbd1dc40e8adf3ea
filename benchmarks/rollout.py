"""How often a good version is taken back, how often a bad one comes to serve, and when it is seen.

The product's own canary judges simulated traffic on a virtual clock, looked at every tenth of a
second: Poisson arrivals, half of them streams, answers of very unequal length. The load may grow,
errors may come in bursts that hit both versions, and a new version may answer its first requests
five times slower. Nothing is asked by us: only what clients see counts.

Usage: python -m benchmarks.rollout [--rollouts N] [--quick]
"""

import argparse
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.common import Figures, report
from weighbridge.rollout.canary import Canary
from weighbridge.rollout.deploy_args import RolloutArgs
from weighbridge.rollout.rollout import POLL
from weighbridge.serving.gateway.models import FinishedRequest
from weighbridge.serving.targets.base import Release, Revision

RATES = (2.0, 10.0, 50.0)
"""Requests per second."""
BEFORE = 30.0
"""Seconds of traffic before the first step: the new version is started and probed meanwhile."""
COLD, COLD_SLOWER = 40, 5.0
BURST_SECONDS, BURST_ERRORS, BURST_WITHIN = 10.0, 0.3, 120.0
GROWTH_SECONDS = 120.0


@dataclass(frozen=True)
class Scene:
    """How both versions are, and what happens meanwhile."""

    errors: tuple[float, float] = (0.0, 0.0)
    """Of the old and of the new version."""
    slower: float = 1.0
    cold: bool = False
    grows: bool = False
    """The load doubles, and with it the time of every answer."""
    burst: bool = False


GOOD = {
    "same": Scene(),
    "same_1_percent": Scene(errors=(0.01, 0.01)),
    "cold": Scene(cold=True),
    "growing": Scene(grows=True),
    "burst": Scene(burst=True),
}
BAD = {
    "errors_5_to_0": Scene(errors=(0.0, 0.05)),
    "errors_5_to_1": Scene(errors=(0.01, 0.05)),
    "twice_as_slow": Scene(slower=2.0),
    "twice_as_slow_and_cold": Scene(slower=2.0, cold=True),
}


@dataclass
class Simulation:
    """Clients of one address; the product's `Traffic` and its clock."""

    scene: Scene
    rate: float
    dice: random.Random
    now: float = 0.0
    share: float = 0.0
    answered: int = 0
    """By the new version."""
    _ends: list[FinishedRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._burst = BEFORE + self.dice.uniform(0, BURST_WITHIN)
        self._arrivals = self._times()
        self._next = next(self._arrivals)
        self._cold = COLD if self.scene.cold else 0

    def clock(self) -> float:
        return self.now

    def read(self) -> list[FinishedRequest]:
        """Return the requests that ended by now."""
        while self._next <= self.now:
            self._ends.append(self._request(self._next))
            self._next = next(self._arrivals)
        ended = [request for request in self._ends if request.at <= self.now]
        self._ends = [request for request in self._ends if request.at > self.now]
        self.answered += sum(request.server == "new" for request in ended)
        return ended

    def _times(self) -> Iterator[float]:
        now = 0.0
        while True:
            now += self.dice.expovariate(self.rate * self._load(now))
            yield now

    def _load(self, now: float) -> float:
        return 1 + min(now / GROWTH_SECONDS, 1.0) if self.scene.grows else 1.0

    def _request(self, began: float) -> FinishedRequest:
        scene, dice = self.scene, self.dice
        is_new, stream = dice.random() < self.share, dice.random() < 0.5
        slower = self._load(began) * (scene.slower if is_new else 1.0)
        if is_new and self._cold:
            self._cold -= 1
            slower *= COLD_SLOWER
        in_burst = scene.burst and 0 <= began - self._burst < BURST_SECONDS
        failed = dice.random() < scene.errors[is_new] + (BURST_ERRORS if in_burst else 0)
        tokens = 1 + int(dice.lognormvariate(4.0, 0.7))
        first = slower * dice.lognormvariate(-1.6, 0.3)
        seconds = first + slower * tokens * 0.02 * dice.lognormvariate(0.0, 0.15)
        return FinishedRequest(
            server="new" if is_new else "old",
            status=500 if failed else 200,
            seconds=0.05 if failed else seconds,
            stream=stream,
            truncated=False,
            at=began + (0.05 if failed else seconds),
            # What is no stream sends its head when all of it is there.
            first_byte=first if stream else seconds,
            bytes=200 * tokens if stream else 300 + 4 * tokens,
        )


def rollout(simulation: Simulation, policy: RolloutArgs) -> str:
    """Return how a rollout ends: it serves, is proven to be worse, or is not decided in time."""
    release = Release(name="sim", version="2", bento="sim:2", digest="")
    old, new = (Revision(name=name, release=release, url="") for name in ("old", "new"))
    canary = Canary(policy, old, new, simulation, (), clock=simulation.clock)
    try:
        simulation.now = BEFORE
        number = 0
        while number < len(policy.steps):
            outcome = _step(canary, simulation, policy, policy.steps[number])
            if outcome == "pass":
                number += 1
            elif outcome == "fail" and canary.compares_again(policy.steps[number]):
                number -= 1
            else:
                return outcome
        return "pass"
    finally:
        canary.close()


def _step(canary: Canary, simulation: Simulation, policy: RolloutArgs, share: int) -> str:
    """As the product's rollout observes a step."""
    simulation.share = share / 100
    canary.begin_step()
    began, seen = simulation.now, -1
    while True:
        simulation.now += POLL
        canary.look(share)
        waited = simulation.now - began
        # Nothing new: the judgement is the one of before, unless a time is over.
        if canary.requests == seen and waited <= policy.step_deadline:
            continue
        seen = canary.requests
        judgement = canary.judge(share)
        if judgement.verdict == "fail":
            return "fail"
        if judgement.verdict == "pass" and waited >= policy.step_seconds:
            return "pass"
        if waited > policy.step_deadline:
            return "inconclusive"


def measure(figures: Figures, rollouts: int, seed: int) -> None:
    """Add what becomes of each scene at each rate."""
    policy = RolloutArgs()
    for name, scene in {**GOOD, **BAD}.items():
        outcomes: list[tuple[str, int, float]] = []
        for number in range(rollouts):
            simulation = Simulation(scene, RATES[number % len(RATES)], random.Random(seed + number))
            outcomes.append((rollout(simulation, policy), simulation.answered, simulation.now))
        part = {
            verdict: sum(outcome == verdict for outcome, *_ in outcomes) / rollouts
            for verdict in ("pass", "fail", "inconclusive")
        }
        print(name, part, file=sys.stderr, flush=True)
        answers = statistics.median(answers for _, answers, _ in outcomes)
        if name in GOOD:
            figures.add(f"{name}_back", 1 - part["pass"], at_most=0.01)
            figures.add(f"{name}_answers_until_it_serves", answers)
        else:
            figures.add(f"{name}_serves", part["pass"], at_most=0.05)
            most = 250 if "slow" in name else 150
            figures.add(f"{name}_answers_until_seen", answers, at_most=most)
        figures.add(f"{name}_undecided", part["inconclusive"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=300, help="of each scene (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="30 of each")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    figures = Figures("rollout")
    measure(figures, 30 if options.quick else options.rollouts, options.seed)
    report(figures)


if __name__ == "__main__":
    main()
