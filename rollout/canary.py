"""A new version in traffic beside the old one: what clients saw, and questions of our own.

The questions are asked where clients ask too little.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Final, Literal

from weighbridge.core.errors import Unavailable
from weighbridge.rollout import extra_errors
from weighbridge.rollout.deploy_args import RolloutArgs
from weighbridge.rollout.extra_errors import answers_needed
from weighbridge.rollout.probe import ProbeQuestion
from weighbridge.rollout.sequential_test import ALONE, Comparison, Judgement, is_failed
from weighbridge.serving.gateway.models import FinishedRequest
from weighbridge.serving.openai_client import Client, RequestRefused
from weighbridge.serving.targets.base import Revision, Traffic

TIMEOUT = 60.0
"""Seconds that a question of ours waits for its answer."""
CONCURRENCY = 2
"""Questions of ours under way at each version: few, so that they don't slow down clients."""
FOR_CLIENTS: Final = 0.8
"""Weight of what clients saw in the mean of both e-values: where nobody is asked otherwise, it
costs a factor of 1.25, not of 2 as two halves of alpha do.
"""
LOOKS_WORSE: Final = 10.0
"""E-value at which nothing is proven, and no step passes either: by Ville's inequality at most a
tenth of good versions ever get here.
"""
BAD_GATEWAY = 502
"""Status of a question that got no answer at all: what a gateway would say then."""


class Canary:
    """Evidence of one rollout, over all its steps.

    Two comparisons: requests that the gateway sent where it liked, and questions that are put to
    both versions alike, past the gateway. They differ too much to be thrown together. Errors fail a
    version as soon as they prove harm at the level `error_rate`, and so does latency; each of both
    is a weighted mean of the two comparisons' e-values, which is an e-value.

    A step passes when harm above a stated size is excluded, with 95 % confidence and from clients'
    requests alone. What a step may cost is its share times the extra errors: at 10 % of the traffic
    ten times `max_extra_errors` are allowed. Where clients ask too little for that within the
    step's deadline, `min_requests` answers without a sign of harm do, questions of ours among them.
    """

    def __init__(
        self,
        policy: RolloutArgs,
        old: Revision | None,
        new: Revision,
        traffic: Traffic,
        questions: Sequence[ProbeQuestion],
        max_tokens: int = 128,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._old, self._new = old, new
        self._old_name = old.name if old else None
        self._traffic = traffic
        self._questions = questions
        self._max_tokens = max_tokens
        self._policy = policy
        self._clock = clock
        # What we ask was asked before by the probe: it needs no warm-up.
        self._clients, self._asked = (
            Comparison(max_latency_ratio=policy.max_latency_ratio, warm_up=warm_up)
            for warm_up in (policy.warm_up, 0)
        )
        self._pool = ThreadPoolExecutor(2 * CONCURRENCY)
        self._pairs: list[Future[list[FinishedRequest]]] = []
        self._numbers = count()
        self._began = self._step_began = clock()
        self._last_shared = max((one for one in policy.steps if one / 100 < ALONE), default=0)
        self._has_compared_again = False
        self._errors_before = self._clients.errors
        self._step_answers = 0
        self.requests = self.failed = 0
        """Seen at the address since the rollout began."""

    def begin_step(self) -> None:
        """Count from here the answers that a step takes."""
        self._step_answers = 0
        self._step_began = self._clock()
        self._errors_before = copy.deepcopy(self._clients.errors)

    def compares_again(self, share: int) -> bool:
        """Whether proof of harm is put to the test once more, at the step before, and forget it.

        Where the new version serves alone, an outage of everything looks as if it were its own. So
        errors that only came there are counted for nothing, once, and both serve again.

        Args:
            share: percent of new requests at which harm was proven.
        """
        is_alone = share / 100 >= ALONE and self._last_shared > 0
        if self._has_compared_again or not is_alone or not self._proves("errors"):
            return False
        self._has_compared_again = True
        self._clients.errors = copy.deepcopy(self._errors_before)
        return True

    def look(self, share: int) -> None:
        """Take in the requests that ended since the last look.

        Args:
            share: percent of them that was meant for the new version.
        """
        requests = self._traffic.read()
        self.requests += len(requests)
        self.failed += sum(is_failed(request) for request in requests)
        self._step_answers += sum(
            request.server == self._new.name and not request.pinned for request in requests
        )
        self._clients.see(requests, self._old_name, self._new.name, share / 100)
        for pair in [pair for pair in self._pairs if pair.done()]:
            self._pairs.remove(pair)
            # Each question goes to both versions: half of these requests are the new one's.
            self._asked.see(pair.result(), self._old_name, self._new.name, 0.5)
            self._step_answers += 1

    def ask(self) -> None:
        """Keep a few questions under way at both versions, as long as the step lacks answers."""
        while (
            self._questions
            and len(self._pairs) < CONCURRENCY
            and self._step_answers + len(self._pairs) < self._policy.min_requests
        ):
            question = self._questions[next(self._numbers) % len(self._questions)]
            self._pairs.append(self._pool.submit(self._ask_both, question))

    def judge(self, share: int) -> Judgement:
        """Fail as soon as harm is proven, pass as soon as this step has shown enough.

        Args:
            share: percent of new requests that the new version gets.
        """
        if self._proves("errors") or self._proves("latency"):
            by_clients = _strength(self._clients) * FOR_CLIENTS
            is_asked = _strength(self._asked) * (1 - FOR_CLIENTS) > by_clients
            harm = (self._asked if is_asked else self._clients).harm()
            return Judgement(verdict="fail", why=f"the new version {harm}")
        answers, least = self._step_answers, self._policy.min_requests
        if answers < least:
            why = f"it answered {answers} of the {least} requests that a step takes"
            return Judgement(verdict="inconclusive", why=why)
        if max(self._evidence("errors"), self._evidence("latency")) >= LOOKS_WORSE:
            why = "nothing is proven, but it looks as if it were worse"
            return Judgement(verdict="inconclusive", why=why)
        if self._policy.exclude_harm == "never":
            return Judgement(verdict="pass", why=f"no sign of harm in {answers} requests")
        missing = self._not_excluded(share)
        if not missing:
            return Judgement(
                verdict="pass", why=f"{self._limits(share)} are excluded after {answers} answers"
            )
        if self._is_quiet(share):
            why = (
                f"no sign of harm in {answers} requests, questions of ours among them; clients ask "
                f"too little to exclude more ({missing})"
            )
            return Judgement(verdict="pass", why=why)
        return Judgement(verdict="inconclusive", why=f"not excluded yet: {missing}")

    def figures(self) -> dict[str, float]:
        """Return what was seen since the rollout began."""
        asked = {f"asked_{name}": value for name, value in self._asked.figures().items()}
        return {**self._clients.figures(), **asked, "alpha": self._policy.error_rate}

    def close(self) -> None:
        """Ask nothing more."""
        # Not waited for: a question may take as long as TIMEOUT, and nobody needs its answer.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _proves(self, kind: Literal["errors", "latency"]) -> bool:
        return self._evidence(kind) >= 1 / self._policy.error_rate

    def _evidence(self, kind: Literal["errors", "latency"]) -> float:
        by_clients, asked = (
            getattr(comparison, kind).evidence for comparison in (self._clients, self._asked)
        )
        return float(FOR_CLIENTS * by_clients + (1 - FOR_CLIENTS) * asked)

    def _not_excluded(self, share: int) -> str:
        """Return what clients' requests do not exclude yet of what they must; empty for nothing."""
        errors, latency = self._clients.errors, self._clients.latency
        extra, ratio = self._policy.most_extra(share), self._most_ratio(share)
        old, new = errors.of(False), errors.of(True)
        missing = []
        if not extra_errors.excludes(old, new, extra):
            needed = answers_needed(extra)
            missing.append(
                f"{100 * extra:.3g} points of extra errors, {new.requests} answers of the "
                f"{needed} that it takes without an error"
            )
        enough = self._policy.min_requests
        if self._must_exclude_latency(share) and not latency.excludes(ratio, enough):
            missing.append(f"{ratio:.3g} times the latency")
        return "; ".join(missing)

    def _limits(self, share: int) -> str:
        extra, ratio = self._policy.most_extra(share), self._most_ratio(share)
        if not self._must_exclude_latency(share):
            return f"{100 * extra:.3g} points of extra errors"
        return f"{100 * extra:.3g} points of extra errors and {ratio:.3g} times the latency"

    def _most_ratio(self, share: int) -> float:
        # Where both serve for the last time as at the end: later there is nobody to compare with.
        counted = 100 if share >= self._last_shared else share
        return 1 + (self._policy.max_latency_ratio - 1) * 100 / counted

    def _must_exclude_latency(self, share: int) -> bool:
        # While it warms up its latency says nothing, and what that may cost is bounded by its
        # share. Where it serves alone this was decided before.
        if share > self._last_shared:
            return False
        return share == self._last_shared or self._clients.latency.cold == 0

    def _is_quiet(self, share: int) -> bool:
        """Whether clients ask so little that harm can't be excluded within the step's deadline."""
        now, policy = self._clock(), self._policy
        waited = now - self._step_began
        if policy.exclude_harm == "always" or waited < policy.step_seconds:
            return False
        per_second = self.requests / max(now - self._began, 1e-9) * share / 100
        to_come = per_second * max(policy.step_deadline - waited, 0.0)
        seen = self._clients.errors.of(True).requests
        return seen + to_come < answers_needed(self._policy.most_extra(share))

    def _ask_both(self, question: ProbeQuestion) -> list[FinishedRequest]:
        return [_ask(revision, question, self._max_tokens) for revision in self._both()]

    def _both(self) -> Iterator[Revision]:
        if self._old is not None:
            yield self._old
        yield self._new


def _strength(comparison: Comparison) -> float:
    return max(comparison.errors.evidence, comparison.latency.evidence)


def _ask(revision: Revision, question: ProbeQuestion, max_tokens: int) -> FinishedRequest:
    """Ask a revision, and return that as the gateway would log it."""
    began, status, text = time.monotonic(), 200, ""
    try:
        text = Client(revision.url, TIMEOUT).ask(question.prompt, max_tokens=max_tokens).text
    except RequestRefused as exc:
        status = exc.status
    except Unavailable:
        status = BAD_GATEWAY
    return FinishedRequest(
        server=revision.name,
        status=status,
        seconds=time.monotonic() - began,
        stream=False,
        truncated=False,
        at=time.time(),
        bytes=len(text.encode()),
    )
