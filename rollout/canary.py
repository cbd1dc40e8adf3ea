"""A new version in traffic beside the old one: what clients saw, and questions of our own where
they ask too little.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

from weighbridge.core.errors import Unavailable
from weighbridge.rollout.deploy_args import RolloutArgs
from weighbridge.rollout.probe import ProbeQuestion
from weighbridge.rollout.sequential_test import SUSPICION, Comparison, Judgement
from weighbridge.serving.gateway.models import FinishedRequest
from weighbridge.serving.openai_client import Client, RequestRefused
from weighbridge.serving.targets.base import Revision, Traffic

SERVER_ERROR = 500
TIMEOUT = 60.0
"""Seconds that a question of ours waits for its answer."""
AT_ONCE = 2
"""Questions of ours under way at each version."""


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
        self._traffic = traffic
        self._questions = questions
        self._max_tokens = max_tokens
        self._min = policy.min_requests
        self._live, self._asked = (
            Comparison(
                alpha=policy.error_rate / 2,
                max_latency_ratio=policy.max_latency_ratio,
                min_requests=policy.min_requests,
            )
            for _ in range(2)
        )
        self._pool = ThreadPoolExecutor(2 * AT_ONCE)
        self._pairs: list[Future[list[FinishedRequest]]] = []
        self._numbers = count()
        self._step = 0
        self.requests = self.failed = 0
        """Seen at the address since the rollout began."""

    def begin_step(self) -> None:
        """Count from here what a step takes."""
        self._step = 0

    def look(self, share: int) -> None:
        """Take in the requests that ended since the last look; `share` percent of them were meant
        for the new one.
        """
        seen = self._traffic.read()
        self.requests += len(seen)
        self.failed += sum(_failed(one) for one in seen)
        self._step += sum(one.server == self._new.name and not one.pinned for one in seen)
        self._live.see(seen, self._old.name if self._old else None, self._new.name, share / 100)
        for pair in [pair for pair in self._pairs if pair.done()]:
            self._pairs.remove(pair)
            self._asked.see(
                pair.result(), self._old.name if self._old else None, self._new.name, 0.5
            )
            self._step += 1

    def ask(self) -> None:
        """Keep a few questions under way at both versions, as long as the step lacks answers."""
        while (
            self._questions
            and len(self._pairs) < AT_ONCE
            and self._step + len(self._pairs) < self._min
        ):
            question = self._questions[next(self._numbers) % len(self._questions)]
            self._pairs.append(self._pool.submit(self._put, question))

    def judge(self) -> Judgement:
        """Fail as soon as harm is proven; pass where this step saw enough, and nothing looks like
        harm.
        """
        live, asked = self._live.judge(), self._asked.judge()
        evidence = {
            **live.evidence,
            **{f"asked_{name}": value for name, value in asked.evidence.items()},
        }
        for judged in (live, asked):
            if judged.verdict == "fail":
                return judged.model_copy(update={"evidence": evidence})
        if self._step < self._min:
            why = f"it answered {self._step} of the {self._min} requests that a step takes"
        elif max(self._live.evidence, self._asked.evidence) >= SUSPICION:
            why = "nothing is proven, but it looks as if it were worse"
        else:
            why = f"no sign of harm in {self._step} requests"
            return Judgement(verdict="pass", why=why, evidence=evidence)
        return Judgement(verdict="inconclusive", why=why, evidence=evidence)

    def close(self) -> None:
        """Ask nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _put(self, question: ProbeQuestion) -> list[FinishedRequest]:
        return [_ask(one, question, self._max_tokens) for one in self._both()]

    def _both(self) -> Iterator[Revision]:
        if self._old is not None:
            yield self._old
        yield self._new


def _failed(one: FinishedRequest) -> bool:
    return one.truncated or one.status >= SERVER_ERROR


def _ask(revision: Revision, question: ProbeQuestion, max_tokens: int) -> FinishedRequest:
    began, status = time.monotonic(), 200
    try:
        Client(revision.url, TIMEOUT).ask(question.prompt, max_tokens=max_tokens)
    except RequestRefused as exc:
        status = exc.status
    except Unavailable:
        status = 502
    return FinishedRequest(
        server=revision.name,
        status=status,
        seconds=time.monotonic() - began,
        stream=False,
        truncated=False,
        at=time.time(),
    )
