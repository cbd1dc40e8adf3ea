"""All checks, in the order in which they make sense to read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from weighbridge.serving.conformance import answers, life, robust
from weighbridge.serving.conformance.base import Check, Outcome, Session, Subject, run_check

CHECKS: Final = (
    Check("start", "starts", life.start),
    Check("ready", "ready only with a real token", life.ready),
    Check("chat", "chat", answers.chat),
    Check("chat_stream", "chat, streamed", answers.chat_stream, needs="streaming"),
    Check("completion", "plain completion", answers.completion),
    Check("completion_stream", "plain completion, streamed", answers.completion_stream, needs="streaming"),
    Check("usage", "usage counts right", answers.usage),
    Check("usage_stream", "usage counts right, streamed", answers.usage_stream, needs="streaming"),
    Check("greedy", "temperature 0 equals the reference", answers.greedy),
    Check("stop", "stop sequences", answers.stop),
    Check("max_tokens", "max_tokens", answers.max_tokens),
    Check("seed", "seed", answers.seed),
    Check("tokenization", "tokens equal the tokenizer's", answers.tokenization),
    Check("chat_template", "chat template equals the tokenizer's", answers.chat_template),
    Check("logprobs", "log-probabilities equal the reference", answers.logprobs),
    Check("system", "system prompts", answers.system),
    Check("unicode", "characters split over tokens come whole", answers.unicode, needs="streaming"),
    Check("at_once", "16 at once", robust.at_once),
    Check("client_gone", "a client that leaves frees its slot", robust.client_gone, needs="streaming"),
    Check("bad_json", "nonsense is a 4xx", robust.bad_json),
    Check("too_long", "an over-long prompt is a 4xx", robust.too_long),
    Check("metrics", "metrics", robust.metrics, needs="metrics"),
    Check("sigterm", "SIGTERM ends it", life.sigterm),
    Check("drain", "SIGTERM lets answers finish", life.drain, needs="streaming"),
    Check("failed_start", "a failed start says why", life.failed_start),
    Check("orphans", "SIGKILL of its parent leaves nothing", life.orphans),
)


def run(
    subject: Subject, tell: Callable[[Outcome], None] = lambda outcome: None, only: Collection[str] = ()
) -> list[Outcome]:
    """Run the checks, telling each outcome as it comes; `only` names those to run, empty for all."""
    with Session(subject) as session:
        outcomes = []
        for outcome in _outcomes(session, [check for check in CHECKS if not only or check.name in only]):
            tell(outcome)
            outcomes.append(outcome)
        return outcomes


def _outcomes(session: Session, checks: list[Check]) -> Iterator[Outcome]:
    broken = ""
    for check in checks:
        if broken:
            yield Outcome(check.name, check.title, "not run", broken)
            continue
        outcome = run_check(check, session)
        if check.name == "start" and outcome.verdict == "failed":
            broken = "it does not start"
        yield outcome
