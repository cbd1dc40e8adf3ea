"""Is the new version worse than the old one? Tests that may be looked at after every request.

All evidence is betting capital: it starts at 1, and while the new version is no worse (the
hypothesis H0) its expected value never grows, whatever is looked at and whenever one stops. By
Ville's inequality (J. Ville, Étude critique de la notion de collectif, 1939) the chance that it
ever reaches 1/alpha is then at most alpha: the share of good versions that are turned back. How the
bets are laid follows I. Waudby-Smith and A. Ramdas, Estimating means of bounded random variables by
betting (2020, JRSS B 86, 2024).
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
"""Capital at which nothing is proven, but "no sign of harm" would not be true: a third of good
versions get here.
"""
TOLERATED: Final = 0.01
"""Error rate that a version may have where no other one tells what is usual."""
ALONE: Final = 0.9
"""Share of the requests above which the old version's few say nothing of the same minutes."""
JITTER: Final = 0.01
"""Seconds by which an answer may come later whatever the ratio."""

_ODDS: Final = (2.0, 5.0, 20.0, 100.0)
"""How many times more often the new version is betted to fail."""
_STAKES: Final = (0.25, 0.5, 0.75, 0.95)
"""Parts of the largest stake that cannot ruin."""
_SERVER_ERROR: Final = 500
_OK: Final = range(200, 300)
_LONG, _SHORT = 128, 32
_KEPT: Final = 512


class Judgement(BaseModel):
    """A verdict, and what it rests on."""

    model_config = ConfigDict(frozen=True)

    verdict: Verdict
    why: str = Field(description="One sentence.")
    evidence: dict[str, float] = Field(default_factory=dict, description="Figures by name.")


class Capital:
    """What several gamblers own on average, who began with 1 and laid different bets on the same
    events.
    """

    def __init__(self, gamblers: int) -> None:
        self._logs = [0.0] * gamblers

    def multiply(self, factors: Sequence[float]) -> None:
        """What each gambler's capital is worth after an event; the expected factor under H0 must be
        at most 1.
        """
        self._logs = [
            log + math.log(factor) for log, factor in zip(self._logs, factors, strict=True)
        ]

    @property
    def value(self) -> float:
        return sum(math.exp(min(log, 700.0)) for log in self._logs) / len(self._logs)


def evidence_above(values: Sequence[float], bound: float, lowest: float) -> float:
    """Evidence against H0: the mean of `values`, which lie in [lowest, 1], is at most `bound`.

    Capital prod(1 + s * (x - bound)), averaged over stakes s in (0, 1 / (bound - lowest)).
    """
    stakes = _STAKES[1::2]  # two: each gambler more costs a question
    capital = Capital(len(stakes))
    most = 1 / max(bound - lowest, 0.05)
    for value in values:
        capital.multiply([1 + stake * most * (value - bound) for stake in stakes])
    return capital.value


class Comparison:
    """The new version against the old one over a whole rollout, request by request.

    Counted are finished requests that the gateway sent where it liked: answers with 2xx, and errors
    (5xx, or an answer that the server's side broke off). Requests pinned to a version, those that
    clients gave up, those tried at another version first and 4xx don't count.

    The evidence is the mean of three capitals, which is one again: `errors` while both serve,
    `rate` where the new version serves alone, `latency`.
    """

    def __init__(
        self, *, alpha: float = 0.01, max_latency_ratio: float = 2.0, min_requests: int = 20
    ) -> None:
        self.alpha = alpha
        self.min_requests = min_requests
        self._errors = _Errors()
        self._rate = _Rate()
        self._latency = _Latency(max_latency_ratio)

    def see(
        self, seen: Sequence[FinishedRequest], old: str | None, new: str, share: float | None = None
    ) -> None:
        """Take in what was newly seen, each request once.

        `share` (0 to 1) is the part of new requests that was sent to the new version meanwhile. It
        keeps the comparison exact right after a change of it; without it the part is taken from
        what was seen.
        """
        for one in sorted(seen, key=lambda one: one.at):
            if one.server in (new, old) and not one.pinned and _counts(one):
                self._take(one, one.server == new, old is None, share or 0.0)

    def _take(self, one: FinishedRequest, is_new: bool, first: bool, share: float) -> None:
        share = 1.0 if first else max(share, self._errors.share())
        failed = _failed(one)
        if share < ALONE:
            self._errors.bet(is_new, failed, share)
        elif is_new:
            self._rate.bet(failed, self._errors)
        self._errors.count(is_new, failed)
        if not failed:
            self._latency.bet(one, is_new)

    @property
    def evidence(self) -> float:
        """Against H0, that the new version is neither less reliable nor slower than allowed."""
        capitals = (self._errors.capital, self._rate.capital, self._latency.capital)
        return sum(capital.value for capital in capitals) / len(capitals)

    def judge(self) -> Judgement:
        """Fail as soon as harm is proven; pass only with enough requests and no sign of it."""
        evidence, seen = self.evidence, self._errors.requests[True]
        if evidence >= 1 / self.alpha:
            return self._judged("fail", f"the new version {self._worse()}")
        if seen < self.min_requests:
            return self._judged(
                "inconclusive",
                f"it answered {seen} of the {self.min_requests} requests that it takes",
            )
        if evidence >= SUSPICION:
            return self._judged(
                "inconclusive", f"not proven, but it looks as if the new version {self._worse()}"
            )
        return self._judged("pass", f"no sign of harm in {seen} requests")

    def _worse(self) -> str:
        errors = self._errors
        if self._latency.capital.value > max(errors.capital.value, self._rate.capital.value):
            new, old = self._latency.medians()
            return f"is more than {self._latency.ratio:g} times slower: median {new:.3g} s, {old:.3g} s before"
        (old_failed, old_seen), (new_failed, new_seen) = errors.of(False), errors.of(True)
        before = f", {old_failed} of {old_seen} before" if old_seen else ""
        return f"fails more often: {new_failed} of {new_seen} requests{before}"

    def _judged(self, verdict: Verdict, why: str) -> Judgement:
        (old_failed, old_seen), (new_failed, new_seen) = (
            self._errors.of(False),
            self._errors.of(True),
        )
        new, old = self._latency.medians()
        figures = {
            "requests_new": new_seen,
            "requests_old": old_seen,
            "errors_new": new_failed,
            "errors_old": old_failed,
            "seconds_new": new,
            "seconds_old": old,
            "evidence": self.evidence,
            "alpha": self.alpha,
        }
        return Judgement(
            verdict=verdict,
            why=why,
            evidence={k: float(v) for k, v in figures.items() if math.isfinite(v)},
        )


def _counts(one: FinishedRequest) -> bool:
    return not (one.aborted or one.moved) and (one.status in _OK or one.status >= _SERVER_ERROR)


def _failed(one: FinishedRequest) -> bool:
    return one.status >= _SERVER_ERROR or one.truncated


class _Errors:
    """In which arm does the next error fall? Under H0 in the new one with probability `share`, its
    part of requests.

    A gambler who thinks that the new version fails `odds` times as often puts q = odds * p / (1 - p
    + odds * p) on it: the capital is multiplied by q/p, or by (1 - q)/(1 - p) where the error is
    the old version's. How often errors come, and whether that changes with the hour, does not
    matter. A p that is too high only makes the test slower.
    """

    def __init__(self) -> None:
        self.capital = Capital(len(_ODDS))
        self.requests = {False: 0, True: 0}
        self.failed = {False: 0, True: 0}
        self._recent: deque[bool] = deque(maxlen=_LONG)

    def share(self) -> float:
        """The new version's part of the requests of late: the higher of two windows, each drawn
        towards one half.
        """
        recent = list(self._recent)
        return max((sum(window) + 1) / (len(window) + 2) for window in (recent, recent[-_SHORT:]))

    def bet(self, is_new: bool, failed: bool, share: float) -> None:
        if failed:
            chances = [odds * share / (1 - share + odds * share) for odds in _ODDS]
            self.capital.multiply([q / share if is_new else (1 - q) / (1 - share) for q in chances])

    def count(self, is_new: bool, failed: bool) -> None:
        self._recent.append(is_new)
        self.requests[is_new] += 1
        self.failed[is_new] += failed

    def of(self, is_new: bool) -> tuple[int, int]:
        return self.failed[is_new], self.requests[is_new]


class _Rate:
    """Where the new version serves alone: does it fail more often than the old one did before?

    H0: each request fails with probability at most r, the old version's rate with two standard
    errors added, and at least `TOLERATED`. A gambler who thinks it is q > r multiplies by q/r at an
    error, by (1 - q)/(1 - r) otherwise.
    """

    def __init__(self) -> None:
        self.capital = Capital(len(_ODDS))

    def bet(self, failed: bool, errors: _Errors) -> None:
        before, requests = errors.of(False)
        usual = (before + 1 + 2 * math.sqrt(before)) / (requests + 1) if requests else 0.0
        rate = min(max(usual, TOLERATED), 0.9)
        chances = [odds * rate / (1 - rate + odds * rate) for odds in _ODDS]
        self.capital.multiply([q / rate if failed else (1 - q) / (1 - rate) for q in chances])


class _Latency:
    """Pairs of a new request with a recent old one of the same kind, stream or not; no request is
    used twice.

    H0: P(new > ratio * old) <= 1/2 in each pair. Capital prod(1 + s * x), where x is 1 if it was
    greater, else -1.
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.capital = Capital(len(_STAKES))
        self._waiting: dict[bool, deque[float]] = {
            stream: deque(maxlen=_KEPT) for stream in (False, True)
        }
        self._seconds: dict[bool, deque[float]] = {
            arm: deque(maxlen=_KEPT) for arm in (False, True)
        }

    def bet(self, one: FinishedRequest, is_new: bool) -> None:
        self._seconds[is_new].append(one.seconds)
        waiting = self._waiting[one.stream]
        if not is_new:
            waiting.append(one.seconds)
        elif waiting:
            greater = 1 if one.seconds > self.ratio * waiting.pop() + JITTER else -1
            self.capital.multiply([1 + stake * greater for stake in _STAKES])

    def medians(self) -> tuple[float, float]:
        """Of the new and of the old version."""
        new, old = (
            statistics.median(self._seconds[arm]) if self._seconds[arm] else math.nan
            for arm in (True, False)
        )
        return new, old
