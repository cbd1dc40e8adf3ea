"""A new version in traffic beside the old one: what clients saw, and questions of our own.

The questions are asked where clients ask too little.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

from weighbridge.core.errors import Unavailable
from weighbridge.rollout.deploy_args import RolloutArgs
from weighbridge.rollout.probe import ProbeQuestion
from weighbridge.rollout.sequential_test import SUSPICION, Comparison, Judgement, is_failed
from weighbridge.serving.gateway.models import FinishedRequest
from weighbridge.serving.openai_client import Client, RequestRefused
from weighbridge.serving.targets.base import Revision, Traffic

TIMEOUT = 60.0
"""Seconds that a question of ours waits for its answer."""
CONCURRENCY = 2
"""Questions of ours under way at each version: few, so that they don't slow down clients."""
BAD_GATEWAY = 502
"""Status of a question that got no answer at all: what a gateway would say then."""


class Canary:
    """Evidence of one rollout, over all its steps.

    Two comparisons, which share the chance of a false alarm: requests that the gateway sent where
    it liked, and questions that are put to both versions alike, past the gateway. They differ too
    much to be thrown together.
    """

    def __init__(
        self,
        policy: RolloutArgs,
        old: Revision | None,
        new: Revision,
        traffic: Traffic,
        questions: Sequence[ProbeQuestion],
        max_tokens: int = 128,
    ) -> None:
        self._old, self._new = old, new
        self._old_name = old.name if old else None
        self._traffic = traffic
        self._questions = questions
        self._max_tokens = max_tokens
        self._min_requests = policy.min_requests
        # Half of alpha each: that either of two gives a false alarm is then at most alpha
        # (Bonferroni).
        self._clients, self._asked = (
            Comparison(
                alpha=policy.error_rate / 2,
                max_latency_ratio=policy.max_latency_ratio,
                min_requests=policy.min_requests,
            )
            for _ in range(2)
        )
        self._pool = ThreadPoolExecutor(2 * CONCURRENCY)
        self._pairs: list[Future[list[FinishedRequest]]] = []
        self._numbers = count()
        self._step_answers = 0
        self.requests = self.failed = 0
        """Seen at the address since the rollout began."""

    def begin_step(self) -> None:
        """Count from here the answers that a step takes."""
        self._step_answers = 0

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
            and self._step_answers + len(self._pairs) < self._min_requests
        ):
            question = self._questions[next(self._numbers) % len(self._questions)]
            self._pairs.append(self._pool.submit(self._ask_both, question))

    def judge(self) -> Judgement:
        """Fail as soon as harm is proven.

        Pass where this step saw enough, and nothing looks like harm.
        """
        clients, asked = self._clients.judge(), self._asked.judge()
        evidence = {
            **clients.evidence,
            **{f"asked_{name}": value for name, value in asked.evidence.items()},
        }
        for judgement in (clients, asked):
            if judgement.verdict == "fail":
                return judgement.model_copy(update={"evidence": evidence})
        answers = self._step_answers
        if answers < self._min_requests:
            why = f"it answered {answers} of the {self._min_requests} requests that a step takes"
        elif max(self._clients.evidence, self._asked.evidence) >= SUSPICION:
            why = "nothing is proven, but it looks as if it were worse"
        else:
            why = f"no sign of harm in {answers} requests"
            return Judgement(verdict="pass", why=why, evidence=evidence)
        return Judgement(verdict="inconclusive", why=why, evidence=evidence)

    def close(self) -> None:
        """Ask nothing more."""
        # Not waited for: a question may take as long as TIMEOUT, and nobody needs its answer.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask_both(self, question: ProbeQuestion) -> list[FinishedRequest]:
        return [_ask(revision, question, self._max_tokens) for revision in self._both()]

    def _both(self) -> Iterator[Revision]:
        if self._old is not None:
            yield self._old
        yield self._new


def _ask(revision: Revision, question: ProbeQuestion, max_tokens: int) -> FinishedRequest:
    """Ask a revision, and return that as the gateway would log it."""
    began, status = time.monotonic(), 200
    try:
        Client(revision.url, TIMEOUT).ask(question.prompt, max_tokens=max_tokens)
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
    )
