"""Is the new version worse than the old one? Tests that may be looked at after every request.

All evidence is an e-value: the wealth of somebody who begins with 1 and bets against the hypothesis
H0, "the new version is no worse", at odds that are fair under H0. The wealth over time is a
nonnegative supermartingale under H0 (an e-process), whatever is looked at and whenever one stops.
By Ville's inequality the chance that it ever reaches 1/alpha is then at most alpha, which is the
share of good versions that are turned back.

Sources:

- J. Ville, Étude critique de la notion de collectif, 1939: P(sup W >= 1/alpha) <= alpha.
- I. Waudby-Smith and A. Ramdas, Estimating means of bounded random variables by betting, JRSS B 86
  (2024), arXiv:2010.09686: wealth prod(1 + s * (x - m)), which `wealth_above` is.
- V. Vovk and R. Wang, E-values: calibration, combination and applications, Annals of Statistics 49
  (2021), arXiv:1912.06116: the mean of e-values is an e-value, however they depend on each other.
- G. Shafer, Testing by betting, JRSS A 184 (2021), arXiv:1903.06991: likelihood ratios as bets.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.rollout import extra_errors
from weighbridge.rollout.extra_errors import Counts
from weighbridge.rollout.latency_test import LatencyTest
from weighbridge.serving.gateway.models import FinishedRequest

Verdict = Literal["pass", "fail", "inconclusive", "error"]

SUSPICION: Final = 3.0
"""E-value at which nothing is proven, but "no sign of harm" would not be true: by Ville's
inequality at most a third of good versions get here.
"""
TOLERATED: Final = 0.01
"""Error rate that a version may have where no other one tells what is usual."""
ALONE: Final = 0.9
"""Share of the requests above which the old version's few say nothing of the same minutes."""

_ODDS: Final = (2.0, 4.0, 8.0, 20.0, 100.0, 1000.0)
"""How many times more often the new version is betted to fail: a mixture over a grid, as a beta
mixture has no closed form where the share changes from step to step.
"""
_STAKES: Final = (0.5, 0.95)
"""Parts of the largest stake that cannot ruin. None is 1: a wealth of 0 never grows again. Two
alone: each bettor more costs a question of the few there are.
"""
_LARGEST_LOG: Final = 700.0
"""exp of more than 709 is no float any more."""
_SERVER_ERROR: Final = 500
_OK: Final = range(200, 300)
_LONG, _SHORT = 128, 32
"""Requests over which the new version's share is counted, where nobody tells it."""


class Judgement(BaseModel):
    """A verdict, and what it rests on."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    why: str = Field(description="One sentence.")
    evidence: dict[str, float] = Field(default_factory=dict, description="Figures by name.")


class WealthProcess:
    """The mean wealth of several bettors, who began with 1 and bet differently on the same events.

    Which bet is the best is not known beforehand. The mean is an e-process as each of them is, and
    costs at most a factor of their number against the best one.
    """

    def __init__(self, bettors: int, log_wealth: Sequence[float] = ()) -> None:
        """Begin.

        Args:
            bettors: how many there are.
            log_wealth: the logarithm of what each begins with; empty for 1.
        """
        # As logarithms: a product of thousands of factors would leave the range of a float.
        self._log_wealth = [*log_wealth] if len(log_wealth) == bettors else [0.0] * bettors

    def bet(self, factors: Sequence[float]) -> None:
        """Multiply each bettor's wealth by the factor of an event.

        Args:
            factors: one for each bettor, greater than 0, with an expected value of at most 1 under
                H0.
        """
        self._log_wealth = [
            log + math.log(factor) for log, factor in zip(self._log_wealth, factors, strict=True)
        ]

    @property
    def log_wealth(self) -> list[float]:
        """What each bettor has by now, as a logarithm."""
        return [*self._log_wealth]

    @property
    def e_value(self) -> float:
        wealth = [math.exp(min(log, _LARGEST_LOG)) for log in self._log_wealth]
        return sum(wealth) / len(wealth)


def wealth_above(
    values: Sequence[float], bound: float, lowest: float, log_wealth: Sequence[float] = ()
) -> WealthProcess:
    """Return the wealth of betting against H0: the mean of `values` is at most `bound`.

    It is prod(1 + s * (x - bound)), averaged over stakes s in (0, 1 / (bound - lowest)).

    Args:
        values: each within [lowest, 1].
        bound: of their mean.
        lowest: of any of them.
        log_wealth: what each bettor begins with; empty for 1.
    """
    wealth = WealthProcess(len(_STAKES), log_wealth)
    # Where the bound is close to the lowest value the largest stake would grow without limit.
    largest = 1 / max(bound - lowest, 0.05)
    for value in values:
        wealth.bet([1 + stake * largest * (value - bound) for stake in _STAKES])
    return wealth


class Comparison:
    """The new version against the old one over a whole rollout, request by request.

    Counted are finished requests that the gateway sent where it liked: answers with 2xx, and errors
    (5xx, or an answer that the server's side broke off). Requests pinned to a version, those that
    clients gave up, those tried at another version first and 4xx don't count.

    Errors and latency are evidence of their own. Errors during a warm-up count.
    """

    def __init__(self, *, max_latency_ratio: float = 2.0, warm_up: int = 0) -> None:
        self.errors = ErrorTest()
        self.latency = LatencyTest(max_latency_ratio, warm_up)

    def see(
        self,
        requests: Sequence[FinishedRequest],
        old: str | None,
        new: str,
        share: float | None = None,
    ) -> None:
        """Take in finished requests, each once.

        Args:
            requests: what ended since the last call.
            old: name of the old revision; None where nothing served before.
            new: name of the new one.
            share: the part (0 to 1) of new requests that was sent to the new version meanwhile. It
                keeps the comparison exact right after a change of it. Without it the part is taken
                from what was seen.
        """
        for request in sorted(requests, key=lambda request: request.at):
            if request.server in (new, old) and not request.pinned and _counts(request):
                self._take(request, request.server == new, old is None, share or 0.0)

    def _take(self, request: FinishedRequest, is_new: bool, is_first: bool, share: float) -> None:
        # The higher of both: a share that is too high only makes the test slower.
        share = 1.0 if is_first else max(share, self.errors.observed_share())
        failed = is_failed(request)
        self.errors.take(is_new, failed, share)
        if not failed:
            self.latency.take(request, is_new)

    def harm(self) -> str:
        """Return what the new version does worse, going by the stronger evidence."""
        latency = self.latency
        if latency.evidence > self.errors.evidence:
            new, old = latency.medians()
            slower = f"is more than {latency.ratio:g} times slower"
            return f"{slower}: median {new:.3g} s, {old:.3g} s before"
        old_counts, new_counts = self.errors.of(False), self.errors.of(True)
        before = (
            f", {old_counts.failed} of {old_counts.requests} before" if old_counts.requests else ""
        )
        return f"fails more often: {new_counts.failed} of {new_counts.requests} requests{before}"

    def figures(self) -> dict[str, float]:
        """Return what was seen."""
        old, new = self.errors.of(False), self.errors.of(True)
        new_seconds, old_seconds = self.latency.medians()
        figures = {
            "requests_new": new.requests,
            "requests_old": old.requests,
            "errors_new": new.failed,
            "errors_old": old.failed,
            "seconds_new": new_seconds,
            "seconds_old": old_seconds,
            "evidence": max(self.errors.evidence, self.latency.evidence),
            "evidence_errors": self.errors.evidence,
            "evidence_latency": self.latency.evidence,
            "extra_errors_below": extra_errors.bound(old, new),
            "latency_ratio_below": self.latency.bound(),
        }
        # A median of nothing is not a number, and JSON has no such value.
        return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def usual_error_rate(failed: float, requests: float) -> float:
    """Return the error rate that is taken as usual after so many failures of so many requests.

    Two standard errors are added: of a count of rare events it is the square root (Poisson).
    """
    usual = (failed + 1 + 2 * math.sqrt(failed)) / (requests + 1) if requests else 0.0
    return max(usual, TOLERATED)


def is_failed(request: FinishedRequest) -> bool:
    """Whether the server's side failed to answer."""
    return request.status >= _SERVER_ERROR or request.truncated


def _counts(request: FinishedRequest) -> bool:
    if request.aborted or request.moved:
        return False
    return request.status in _OK or request.status >= _SERVER_ERROR


class ErrorTest:
    """Does the new version fail more often? One wealth over a rollout, betted in two ways.

    While both serve: at which of them does the next error happen? H0: at the new one with a
    probability of at most p, its share of the requests. A bettor who thinks that the new version
    fails `odds` times as often puts q = odds * p / (1 - p + odds * p) on it. The likelihood ratio
    is the factor: q / p where the error is the new version's, (1 - q) / (1 - p) where it is the old
    one's. How often errors come, and whether that changes with the hour, does not matter.

    Where the new version serves alone: does it fail more often than the old one did before? H0:
    each request fails with a probability of at most r, the old version's rate with two standard
    errors added, and at least `TOLERATED`. A bettor who thinks that it is q > r multiplies by q / r
    at an error, by (1 - q) / (1 - r) otherwise: again a likelihood ratio. No request is betted on
    in both ways, so the product of the factors is one e-process.
    """

    def __init__(self) -> None:
        self._wealth = WealthProcess(len(_ODDS))
        self._requests = {False: 0, True: 0}
        self._failed = {False: 0, True: 0}
        self._recent: deque[bool] = deque(maxlen=_LONG)

    @property
    def evidence(self) -> float:
        """The e-value against H0: it fails no more often."""
        return self._wealth.e_value

    def observed_share(self) -> float:
        """Return the new version's part of the requests of late.

        The higher of two windows, each drawn towards one half: (n + 1) / (N + 2), Laplace's rule of
        succession.
        """
        recent = list(self._recent)
        return max((sum(window) + 1) / (len(window) + 2) for window in (recent, recent[-_SHORT:]))

    def take(self, is_new: bool, failed: bool, share: float) -> None:
        """Bet on a request, then count it.

        Args:
            is_new: whether the new version answered.
            failed: or did not.
            share: the part of the requests that it gets.
        """
        # The bet comes before the count: odds that knew of this request would make the wealth no
        # supermartingale.
        if share < ALONE:
            self._bet_where(is_new, failed, share)
        elif is_new:
            self._bet_how_often(failed)
        self._recent.append(is_new)
        self._requests[is_new] += 1
        self._failed[is_new] += failed

    def of(self, is_new: bool) -> Counts:
        """Return the errors and the requests of one version."""
        return Counts(self._failed[is_new], self._requests[is_new])

    def _bet_where(self, is_new: bool, failed: bool, share: float) -> None:
        if failed:
            chances = [odds * share / (1 - share + odds * share) for odds in _ODDS]
            self._wealth.bet([q / share if is_new else (1 - q) / (1 - share) for q in chances])

    def _bet_how_often(self, failed: bool) -> None:
        # Below 1, since 1 - rate is divided by.
        rate = min(usual_error_rate(*self.of(False)), 0.9)
        chances = [odds * rate / (1 - rate + odds * rate) for odds in _ODDS]
        self._wealth.bet([q / rate if failed else (1 - q) / (1 - rate) for q in chances])
