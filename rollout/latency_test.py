"""Is the new version slower than the old one? Pairs of requests that met the same load.

Two times are compared: until the head of the answer came, of streams alone, and from there to the
end. The second is compared both as it is and per byte of the answer, and only where both are longer
the new version counts as slower: a version that answers at more length is not slower, nor is one
whose engine puts fewer bytes around the same words. Tokens would be better than bytes, and when the
first one came better than when the head did, but a gateway that passes on what it does not read
knows neither; an engine that sends the head at once tells nothing by the first time.

H0 of a pair, for a ratio r: P(new > r * old) <= 1/2, which says of the medians that the new one is
at most r times the old one. Somebody who bets the part s of the wealth against it multiplies it by
1 + s where the new one was slower, by 1 - s where not: a sign test by betting. Bets the other way
round exclude that it is as slow as that. Both are e-processes (sequential_test.py), and the ratios
that are excluded make a one-sided confidence sequence, as signs of the same pairs are counted.
"""

import bisect
import math
import statistics
from collections import deque
from typing import Final

from weighbridge.rollout.extra_errors import ALPHA
from weighbridge.serving.gateway.models import FinishedRequest

JITTER: Final = 0.01
"""Seconds by which an answer may come later whatever the ratio: of two answers that take a few
milliseconds, chance says which is slower.
"""
RECENT: Final = 60.0
"""Seconds between two answers after which they say nothing of the same load."""
_STAKES: Final = (0.25, 0.5, 0.75, 0.95)
"""Parts of the wealth. None is 1: a wealth of 0 never grows again."""
_KEPT: Final = 512
"""Requests kept: for medians, and of the old version to be compared with."""
_LARGEST_LOG: Final = 700.0
"""exp of more than 709 is no float any more."""


class LatencyTest:
    """The latencies of both versions over a whole rollout.

    No request is used twice, so that the pairs are independent of each other. The answers of the
    new version's warm-up don't count: caches fill, and kernels are compiled, at the first ones.
    """

    def __init__(self, ratio: float, warm_up: int = 0) -> None:
        """Prepare for requests.

        Args:
            ratio: of the new version's latency to the old one's, above which it is slower.
            warm_up: answers of the new version that don't count.
        """
        self.ratio = ratio
        self.cold = warm_up
        """Answers of the warm-up that are still to come."""
        self._heads, self._answers = _Ratios(), _Ratios()
        self._unpaired: dict[bool, deque[FinishedRequest]] = {
            stream: deque(maxlen=_KEPT) for stream in (False, True)
        }
        self._seconds: dict[bool, deque[float]] = {
            is_new: deque(maxlen=_KEPT) for is_new in (False, True)
        }

    def take(self, request: FinishedRequest, is_new: bool) -> None:
        """Take in an answer, of a request that did not fail."""
        if is_new and self.cold > 0:
            self.cold -= 1
            return
        self._seconds[is_new].append(request.seconds)
        unpaired = self._unpaired[request.stream]
        if not is_new:
            unpaired.append(request)
        # The newest old one: it met the same load.
        elif unpaired and request.at - unpaired[-1].at <= RECENT:
            self._pair(request, unpaired.pop())

    def _pair(self, new: FinishedRequest, old: FinishedRequest) -> None:
        if new.first_byte is not None and old.first_byte is not None and new.stream:
            self._heads.add(_ratio(new.first_byte, old.first_byte))
        longer = _ratio(_answering(new), _answering(old))
        # Per byte: how long the new one would have taken for the bytes of the old one.
        per_byte = old.bytes / new.bytes if old.bytes and new.bytes else 1.0
        self._answers.add(min(longer, _ratio(_answering(new) * per_byte, _answering(old))))

    @property
    def evidence(self) -> float:
        """The e-value against H0: it is not more than `ratio` times slower."""
        return statistics.fmean(
            times.evidence_slower(self.ratio) for times in (self._heads, self._answers)
        )

    def excludes(self, ratio: float, enough: int) -> bool:
        """Whether it is excluded that the new version is slower by `ratio`.

        Args:
            ratio: of the medians.
            enough: pairs of streams from which on their heads have to exclude it as well.
        """
        times = [self._answers] + ([self._heads] if self._heads.count >= enough else [])
        return all(one.evidence_faster(ratio) >= 1 / ALPHA for one in times)

    def bound(self) -> float:
        """Return the ratio above which all are excluded; infinity where none is."""
        return self._answers.bound()

    def medians(self) -> tuple[float, float]:
        """Return the seconds of the new and of the old version; nan for one without requests."""
        new, old = (
            statistics.median(self._seconds[is_new]) if self._seconds[is_new] else math.nan
            for is_new in (True, False)
        )
        return new, old


class _Ratios:
    """How many times longer the new one took, pair by pair."""

    def __init__(self) -> None:
        self._sorted: list[float] = []

    def add(self, ratio: float) -> None:
        bisect.insort(self._sorted, ratio)

    @property
    def count(self) -> int:
        return len(self._sorted)

    def evidence_slower(self, ratio: float) -> float:
        faster = bisect.bisect_right(self._sorted, ratio)
        return _wealth(self.count - faster, faster)

    def evidence_faster(self, ratio: float) -> float:
        faster = bisect.bisect_right(self._sorted, ratio)
        return _wealth(faster, self.count - faster)

    def bound(self) -> float:
        index = bisect.bisect_left(
            range(self.count), True, key=lambda n: _wealth(n + 1, self.count - n - 1) >= 1 / ALPHA
        )
        return self._sorted[index] if index < self.count else math.inf


def _wealth(won: int, lost: int) -> float:
    """Return the mean wealth over the stakes after so many bets, which began with 1."""
    return statistics.fmean(_one_wealth(stake, won, lost) for stake in _STAKES)


def _one_wealth(stake: float, won: int, lost: int) -> float:
    return math.exp(min(won * math.log1p(stake) + lost * math.log1p(-stake), _LARGEST_LOG))


def _answering(request: FinishedRequest) -> float:
    """Return the seconds in which the answer itself came."""
    if request.stream and request.first_byte is not None:
        return max(request.seconds - request.first_byte, 0.0)
    return request.seconds


def _ratio(new: float, old: float) -> float:
    return (new - JITTER) / max(old, 1e-6)
