"""All checks, in the order in which a reader best takes them in, and their run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from weighbridge.conformance import answer_checks, lifecycle_checks, robustness_checks
from weighbridge.conformance.base import Check, CheckResult, Session, Subject, run_check

CHECKS: Final = (
    Check("start", "starts", lifecycle_checks.start),
    Check("ready", "ready only with a real token", lifecycle_checks.ready),
    Check("chat", "chat", answer_checks.chat),
    Check("chat_stream", "chat, streamed", answer_checks.chat_stream, needs="streaming"),
    Check("completion", "plain completion", answer_checks.completion),
    Check(
        "completion_stream",
        "plain completion, streamed",
        answer_checks.completion_stream,
        needs="streaming",
    ),
    Check("usage", "usage counts right", answer_checks.usage),
    Check(
        "usage_stream",
        "usage counts right, streamed",
        answer_checks.usage_stream,
        needs="streaming",
    ),
    Check("greedy", "temperature 0 equals the reference", answer_checks.greedy),
    Check("stop", "stop sequences", answer_checks.stop),
    Check("max_tokens", "max_tokens", answer_checks.max_tokens),
    Check("seed", "seed", answer_checks.seed),
    Check("tokenization", "tokens equal the tokenizer's", answer_checks.tokenization),
    Check("chat_template", "chat template equals the tokenizer's", answer_checks.chat_template),
    Check("logprobs", "log-probabilities equal the reference", answer_checks.logprobs),
    Check("system", "system prompts", answer_checks.system),
    Check(
        "unicode",
        "characters split over tokens come whole",
        answer_checks.unicode,
        needs="streaming",
    ),
    Check("at_once", "16 at once", robustness_checks.at_once),
    Check(
        "client_gone",
        "a client that leaves frees its slot",
        robustness_checks.client_gone,
        needs="streaming",
    ),
    Check("bad_json", "nonsense is a 4xx", robustness_checks.bad_json),
    Check("too_long", "an over-long prompt is a 4xx", robustness_checks.too_long),
    Check("metrics", "metrics", robustness_checks.metrics, needs="metrics"),
    # From here on checks end the engine, which each one after them has to start again. The first
    # two look at one SIGTERM.
    Check("sigterm", "SIGTERM ends it", lifecycle_checks.sigterm),
    Check("drain", "SIGTERM lets answers finish", lifecycle_checks.drain, needs="streaming"),
    Check("failed_start", "a failed start says why", lifecycle_checks.failed_start),
    Check("orphans", "SIGKILL of its parent leaves nothing", lifecycle_checks.orphans),
)


def run(
    subject: Subject,
    tell: Callable[[CheckResult], None] = lambda result: None,
    only: Collection[str] = (),
) -> list[CheckResult]:
    """Run the checks and return their results.

    Args:
        subject: The engine, its arguments, model and reference.
        tell: Called with every result as it comes.
        only: Names of the checks to run; empty for all.
    """
    checks = [check for check in CHECKS if not only or check.name in only]
    results = []
    with Session(subject) as session:
        for result in _results(session, checks):
            tell(result)
            results.append(result)
    return results


def _results(session: Session, checks: list[Check]) -> Iterator[CheckResult]:
    starts = True
    for check in checks:
        if not starts:
            yield CheckResult(check.name, check.title, "not run", "it does not start")
            continue
        result = run_check(check, session)
        starts = not (check.name == "start" and result.verdict == "failed")
        yield result
