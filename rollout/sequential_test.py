"""Is the new version worse than the old one? Tests that may be looked at after every request.

All evidence is an e-value: the wealth of somebody who begins with 1 and bets against the hypothesis
H0, "the new version is no worse", at odds that are fair under H0. The wealth over time is a
nonnegative supermartingale under H0 (an e-process), whatever is looked at and whenever one stops.
By Ville's inequality the chance that it ever reaches 1/alpha is then at most alpha, which is the
share of good versions that are turned back.

Sources:

- J. Ville, Étude critique de la notion de collectif, 1939: P(sup W >= 1/alpha) <= alpha.
- I. Waudby-Smith and A. Ramdas, Estimating means of bounded random variables by betting, JRSS B 86
  (2024), arXiv:2010.09686: wealth prod(1 + s * (x - m)), which `evidence_above` is.
- V. Vovk and R. Wang, E-values: calibration, combination and applications, Annals of Statistics 49
  (2021), arXiv:1912.06116: the mean of e-values is an e-value, however they depend on each other.
- G. Shafer, Testing by betting, JRSS A 184 (2021), arXiv:1903.06991: likelihood ratios as bets.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

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
JITTER: Final = 0.01
"""Seconds by which an answer may come later whatever the ratio: of two answers that take a few
milliseconds, chance says which is slower.
"""

_ODDS: Final = (2.0, 5.0, 20.0, 100.0)
"""How many times more often the new version is betted to fail."""
_STAKES: Final = (0.25, 0.5, 0.75, 0.95)
"""Parts of the largest stake that cannot ruin. None is 1: a wealth of 0 never grows again."""
_LARGEST_LOG: Final = 700.0
"""exp of more than 709 is no float any more."""
_SERVER_ERROR: Final = 500
_OK: Final = range(200, 300)
_LONG, _SHORT = 128, 32
"""Requests over which the new version's share is counted, where nobody tells it."""
_KEPT: Final = 512
"""Latencies kept: for medians, and of the old version to be compared with."""


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

    def __init__(self, bettors: int) -> None:
        # As logarithms: a product of thousands of factors would leave the range of a float.
        self._log_wealth = [0.0] * bettors

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
    def e_value(self) -> float:
        wealth = [math.exp(min(log, _LARGEST_LOG)) for log in self._log_wealth]
        return sum(wealth) / len(wealth)


def evidence_above(values: Sequence[float], bound: float, lowest: float) -> float:
    """Return the e-value against H0: the mean of `values` is at most `bound`.

    The values lie in [lowest, 1]. It is prod(1 + s * (x - bound)), averaged over stakes s in
    (0, 1 / (bound - lowest)).
    """
    stakes = _STAKES[1::2]  # two alone: each bettor more costs a question of the few there are
    wealth = WealthProcess(len(stakes))
    # Where the bound is close to the lowest value the largest stake would grow without limit.
    largest = 1 / max(bound - lowest, 0.05)
    for value in values:
        wealth.bet([1 + stake * largest * (value - bound) for stake in stakes])
    return wealth.e_value


class Comparison:
    """The new version against the old one over a whole rollout, request by request.

    Counted are finished requests that the gateway sent where it liked: answers with 2xx, and errors
    (5xx, or an answer that the server's side broke off). Requests pinned to a version, those that
    clients gave up, those tried at another version first and 4xx don't count.

    The evidence is the mean of three e-values, which is one again: errors while both serve, the
    error rate where the new version serves alone, latency.
    """

    def __init__(
        self, *, alpha: float = 0.01, max_latency_ratio: float = 2.0, min_requests: int = 20
    ) -> None:
        self.alpha = alpha
        self.min_requests = min_requests
        self._errors = _ErrorsOfBoth()
        self._rate = _ErrorRateAlone()
        self._latency = _Latency(max_latency_ratio)

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
        share = 1.0 if is_first else max(share, self._errors.observed_share())
        failed = is_failed(request)
        # The bet comes before the count: odds that knew of this request would make the wealth no
        # supermartingale.
        if share < ALONE:
            self._errors.bet(is_new, failed, share)
        elif is_new:
            self._rate.bet(failed, self._errors)
        self._errors.count(is_new, failed)
        if not failed:
            self._latency.bet(request, is_new)

    @property
    def evidence(self) -> float:
        """The e-value against H0: it is neither less reliable nor slower than allowed."""
        parts = (self._errors.wealth, self._rate.wealth, self._latency.wealth)
        return sum(wealth.e_value for wealth in parts) / len(parts)

    def judge(self) -> Judgement:
        """Fail as soon as harm is proven; pass only with enough requests and no sign of it."""
        evidence, answered = self.evidence, self._errors.requests[True]
        if evidence >= 1 / self.alpha:
            return self._judgement("fail", f"the new version {self._harm()}")
        if answered < self.min_requests:
            return self._judgement(
                "inconclusive",
                f"it answered {answered} of the {self.min_requests} requests that it takes",
            )
        if evidence >= SUSPICION:
            return self._judgement(
                "inconclusive", f"not proven, but it looks as if the new version {self._harm()}"
            )
        return self._judgement("pass", f"no sign of harm in {answered} requests")

    def _harm(self) -> str:
        """Return what the new version does worse, going by the strongest of the three."""
        errors, latency = self._errors, self._latency
        if latency.wealth.e_value > max(errors.wealth.e_value, self._rate.wealth.e_value):
            new, old = latency.medians()
            slower = f"is more than {latency.ratio:g} times slower"
            return f"{slower}: median {new:.3g} s, {old:.3g} s before"
        (old_failed, old_requests), (new_failed, new_requests) = errors.of(False), errors.of(True)
        before = f", {old_failed} of {old_requests} before" if old_requests else ""
        return f"fails more often: {new_failed} of {new_requests} requests{before}"

    def _judgement(self, verdict: Verdict, why: str) -> Judgement:
        old_failed, old_requests = self._errors.of(False)
        new_failed, new_requests = self._errors.of(True)
        new_seconds, old_seconds = self._latency.medians()
        figures = {
            "requests_new": new_requests,
            "requests_old": old_requests,
            "errors_new": new_failed,
            "errors_old": old_failed,
            "seconds_new": new_seconds,
            "seconds_old": old_seconds,
            "evidence": self.evidence,
            "alpha": self.alpha,
        }
        # A median of nothing is not a number, and JSON has no such value.
        evidence = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
        return Judgement(verdict=verdict, why=why, evidence=evidence)


def is_failed(request: FinishedRequest) -> bool:
    """Whether the server's side failed to answer."""
    return request.status >= _SERVER_ERROR or request.truncated


def _counts(request: FinishedRequest) -> bool:
    if request.aborted or request.moved:
        return False
    return request.status in _OK or request.status >= _SERVER_ERROR


class _ErrorsOfBoth:
    """At which version does the next error happen, while both serve?

    H0: at the new one with a probability of at most p, its share of the requests. A bettor who
    thinks that the new version fails `odds` times as often puts q = odds * p / (1 - p + odds * p)
    on it. The likelihood ratio is the factor: q / p where the error is the new version's, (1 - q) /
    (1 - p) where it is the old one's. How often errors come, and whether that changes with the
    hour, does not matter.
    """

    def __init__(self) -> None:
        self.wealth = WealthProcess(len(_ODDS))
        self.requests = {False: 0, True: 0}
        self.failed = {False: 0, True: 0}
        self._recent: deque[bool] = deque(maxlen=_LONG)

    def observed_share(self) -> float:
        """Return the new version's part of the requests of late.

        The higher of two windows, each drawn towards one half: (n + 1) / (N + 2), Laplace's rule of
        succession.
        """
        recent = list(self._recent)
        return max((sum(window) + 1) / (len(window) + 2) for window in (recent, recent[-_SHORT:]))

    def bet(self, is_new: bool, failed: bool, share: float) -> None:
        if failed:
            chances = [odds * share / (1 - share + odds * share) for odds in _ODDS]
            self.wealth.bet([q / share if is_new else (1 - q) / (1 - share) for q in chances])

    def count(self, is_new: bool, failed: bool) -> None:
        self._recent.append(is_new)
        self.requests[is_new] += 1
        self.failed[is_new] += failed

    def of(self, is_new: bool) -> tuple[int, int]:
        """Return the errors and the requests of one version."""
        return self.failed[is_new], self.requests[is_new]


class _ErrorRateAlone:
    """Where the new version serves alone: does it fail more often than the old one did before?

    H0: each request fails with a probability of at most r, the old version's rate with two standard
    errors added, and at least `TOLERATED`. A bettor who thinks that it is q > r multiplies by q / r
    at an error, by (1 - q) / (1 - r) otherwise: again a likelihood ratio.
    """

    def __init__(self) -> None:
        self.wealth = WealthProcess(len(_ODDS))

    def bet(self, failed: bool, errors: _ErrorsOfBoth) -> None:
        before, requests = errors.of(False)
        # The standard error of a count of rare events is its square root (Poisson).
        usual = (before + 1 + 2 * math.sqrt(before)) / (requests + 1) if requests else 0.0
        # Below 1, since 1 - rate is divided by.
        rate = min(max(usual, TOLERATED), 0.9)
        chances = [odds * rate / (1 - rate + odds * rate) for odds in _ODDS]
        self.wealth.bet([q / rate if failed else (1 - q) / (1 - rate) for q in chances])


class _Latency:
    """Pairs of a new request with a recent old one of the same kind, stream or not.

    No request is used twice, so that the pairs are independent of each other. H0: P(new > ratio *
    old) <= 1/2 in each pair. The wealth is prod(1 + s * x), where x is 1 if it was greater, else
    -1: a sign test by betting.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.wealth = WealthProcess(len(_STAKES))
        self._unpaired: dict[bool, deque[float]] = {
            stream: deque(maxlen=_KEPT) for stream in (False, True)
        }
        self._seconds: dict[bool, deque[float]] = {
            is_new: deque(maxlen=_KEPT) for is_new in (False, True)
        }

    def bet(self, request: FinishedRequest, is_new: bool) -> None:
        self._seconds[is_new].append(request.seconds)
        unpaired = self._unpaired[request.stream]
        if not is_new:
            unpaired.append(request.seconds)
        elif unpaired:
            # The newest old one: it met the same load.
            sign = 1 if request.seconds > self.ratio * unpaired.pop() + JITTER else -1
            self.wealth.bet([1 + stake * sign for stake in _STAKES])

    def medians(self) -> tuple[float, float]:
        """Return the seconds of the new and of the old version; nan for one without requests."""
        new, old = (
            statistics.median(self._seconds[is_new]) if self._seconds[is_new] else math.nan
            for is_new in (True, False)
        )
        return new, old
